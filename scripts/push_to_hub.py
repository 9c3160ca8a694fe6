"""Push a trained model with its card, its numbers and its code.

python scripts/push_to_hub.py output org/vrae-mine
"""

import argparse

from hf_vrae.command_line import run_script


def main():
    from hf_vrae.hub import push_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="What train.py wrote")
    parser.add_argument("repo_id", help="'name' or 'owner/name'")
    parser.add_argument("--private", action="store_true", help="For a new repository")
    args = parser.parse_args()
    print(f"Pushed to {push_folder(args.folder, args.repo_id, args.private)}")


if __name__ == "__main__":
    run_script(main)
