"""``wm-gym push``: a world model, an agent or a dataset to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from wm_gym.cli.options import Subparsers, add_command, option_value
from wm_gym.errors import ConfigError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "push",
        "Send a world model, an agent or a dataset to the Hugging Face Hub; owner/name (of a dataset "
        "hf://datasets/owner/name) then works wherever a folder does.",
        "wm-gym push runs/agent jane/car-racing-agent --evaluation runs/agent.json --video runs/agent.mp4",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a world model's, an agent's or a dataset's folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository; made where there is none")
    parser.add_argument("--private", action="store_true", help="make a repository that nobody else may see")
    parser.add_argument("--video", metavar="FILE", help=".mp4 or .gif that the model card shows (none of a dataset)")
    parser.add_argument(
        "--evaluation", metavar="FILE", help="result of wm-gym evaluate --json of the agent, for its card"
    )
    parser.add_argument(
        "--env-hub", action="store_true", help="of a model: add an env.py, by which LeRobot's EnvHub makes its dreams"
    )
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Push, and print the address."""
    from wm_gym.agents.bundles.folder import AGENT_BUNDLE
    from wm_gym.bundle import MODEL_BUNDLE
    from wm_gym.data_collection.datasets.metadata import METADATA_FILE
    from wm_gym.errors import BundleError

    folder = Path(arguments.folder)
    if (folder / AGENT_BUNDLE.manifest).exists():
        address = _push_agent(folder, arguments)
    elif (folder / MODEL_BUNDLE.manifest).exists():
        address = _push_model(folder, arguments)
    elif (folder / METADATA_FILE).exists():
        address = _push_dataset(folder, arguments)
    else:
        raise BundleError(
            f"{str(folder)!r} holds neither a world model ({MODEL_BUNDLE.manifest}) nor an agent "
            f"({AGENT_BUNDLE.manifest}) nor a dataset ({METADATA_FILE}); give the folder that `wm-gym train-model`, "
            "`wm-gym train-agent` or `wm-gym collect` wrote."
        )
    print(f"pushed to {address}")
    return 0


def _push_agent(folder: Path, arguments: argparse.Namespace) -> str:
    from wm_gym.agents.bundles.push import push_agent

    _refuse(arguments, folder, "an agent", {"--env-hub": "a world model"})
    return push_agent(
        folder,
        arguments.repository,
        private=arguments.private,
        video=arguments.video,
        evaluation=arguments.evaluation,
        message=arguments.message,
    )


def _push_model(folder: Path, arguments: argparse.Namespace) -> str:
    from wm_gym.hub_card import JUDGEMENT_FILE
    from wm_gym.hub_push import PushTarget, push_model
    from wm_gym.world_model import WorldModel

    target = PushTarget(arguments.repository, arguments.private, arguments.video, arguments.message)
    _refuse(arguments, folder, "a world model", {"--evaluation": "an agent"})
    judgement = folder / JUDGEMENT_FILE
    return push_model(
        WorldModel.from_pretrained(folder),
        target,
        env_hub=arguments.env_hub,
        judgement=judgement if judgement.exists() else None,
    )


def _push_dataset(folder: Path, arguments: argparse.Namespace) -> str:
    from wm_gym.data_collection.datasets.dataset import Dataset

    refused = {"--env-hub": "a world model", "--evaluation": "an agent", "--video": "a world model or an agent"}
    _refuse(arguments, folder, "a dataset", refused)
    dataset = Dataset.open(folder)
    return dataset.push_to_hub(arguments.repository, private=arguments.private, message=arguments.message)


def _refuse(arguments: argparse.Namespace, folder: Path, held: str, options: Mapping[str, str]) -> None:
    """Refuse options that belong to something else than what the folder holds."""
    for option, owner in options.items():
        if option_value(arguments, option):
            raise ConfigError(f"{option} belongs to {owner}, and {str(folder)!r} holds {held}; leave it out.")
