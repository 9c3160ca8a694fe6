"""Latent-variable recurrent models of sequences in the Hugging Face ecosystem.

Importing this package registers its models with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from .modeling.configuration_hierarchical import HierarchicalVRAEConfig
from .modeling.configuration_vrae import VRAEConfig
from .modeling.configuration_vrnn import VRNNConfig
from .modeling.modeling_hierarchical import HierarchicalVRAEForSequenceGeneration
from .modeling.modeling_hierarchical_frames import HierarchicalVRAEForFrameGeneration
from .modeling.modeling_vrae import VRAEForSequenceGeneration
from .modeling.modeling_vrae_frames import VRAEForFrameGeneration
from .modeling.modeling_vrnn import VRNNForSequenceGeneration
from .modeling.modeling_vrnn_frames import VRNNForFrameGeneration

__version__ = "0.1.0"

AutoConfig.register("vrae", VRAEConfig)
AutoConfig.register("vrnn", VRNNConfig)
AutoConfig.register("hierarchical_vrae", HierarchicalVRAEConfig)
# Of several classes the one that `config.architectures` names: with an `input_size` that of frames.
AutoModel.register(VRAEConfig, (VRAEForSequenceGeneration, VRAEForFrameGeneration))
AutoModel.register(VRNNConfig, (VRNNForSequenceGeneration, VRNNForFrameGeneration))
AutoModel.register(HierarchicalVRAEConfig, (HierarchicalVRAEForSequenceGeneration, HierarchicalVRAEForFrameGeneration))
AutoModelForSeq2SeqLM.register(VRAEConfig, VRAEForSequenceGeneration)
AutoModelForSeq2SeqLM.register(HierarchicalVRAEConfig, HierarchicalVRAEForSequenceGeneration)
AutoModelForCausalLM.register(VRNNConfig, VRNNForSequenceGeneration)
# The code of these classes is saved with every checkpoint, which then loads where this package is not installed.
VRAEConfig.register_for_auto_class()
VRNNConfig.register_for_auto_class()
HierarchicalVRAEConfig.register_for_auto_class()
VRAEForSequenceGeneration.register_for_auto_class("AutoModel")
VRAEForFrameGeneration.register_for_auto_class("AutoModel")
VRNNForSequenceGeneration.register_for_auto_class("AutoModel")
VRNNForFrameGeneration.register_for_auto_class("AutoModel")
HierarchicalVRAEForSequenceGeneration.register_for_auto_class("AutoModel")
HierarchicalVRAEForFrameGeneration.register_for_auto_class("AutoModel")

__all__ = [
    "HierarchicalVRAEConfig",
    "HierarchicalVRAEForFrameGeneration",
    "HierarchicalVRAEForSequenceGeneration",
    "VRAEConfig",
    "VRAEForFrameGeneration",
    "VRAEForSequenceGeneration",
    "VRNNConfig",
    "VRNNForFrameGeneration",
    "VRNNForSequenceGeneration",
]
