"""``wm-gym push``: a world model or an agent to the Hugging Face Hub."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "push",
        "Send a world model or an agent to the Hugging Face Hub; owner/name then works wherever a folder does.",
        "wm-gym push runs/agent jane/car-racing-agent --evaluation runs/agent.json --video runs/agent.mp4",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a world model's or an agent's folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository; made where there is none")
    parser.add_argument("--private", action="store_true", help="make a repository that nobody else may see")
    parser.add_argument("--video", default=None, metavar="FILE", help=".mp4 or .gif that the model card shows")
    parser.add_argument(
        "--evaluation", default=None, metavar="FILE", help="result of wm-gym evaluate --json of the agent, for its card"
    )
    parser.add_argument(
        "--env-hub", action="store_true", help="of a model: add an env.py, by which LeRobot's EnvHub makes its dreams"
    )
    parser.add_argument("--message", default=None, metavar="TEXT", help="message of the commit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Push, and print the address."""
    from pathlib import Path

    from wm_gym.agents.bundles.folder import AGENT_BUNDLE
    from wm_gym.agents.bundles.push import push_agent
    from wm_gym.bundle import MODEL_BUNDLE
    from wm_gym.errors import BundleError, ConfigError
    from wm_gym.hub_push import PushTarget, push_model
    from wm_gym.world_model import WorldModel

    folder = Path(arguments.folder)
    target = PushTarget(arguments.repository, arguments.private, arguments.video, arguments.message)
    if (folder / AGENT_BUNDLE.manifest).exists():
        if arguments.env_hub:
            raise ConfigError(f"--env-hub belongs to a world model, and {str(folder)!r} holds an agent; leave it out.")
        address = push_agent(
            folder,
            target.repository,
            private=target.private,
            video=target.video,
            evaluation=arguments.evaluation,
            message=target.message,
        )
    else:
        if not (folder / MODEL_BUNDLE.manifest).exists():
            raise BundleError(
                f"{str(folder)!r} holds neither a world model ({MODEL_BUNDLE.manifest}) nor an agent "
                f"({AGENT_BUNDLE.manifest}); give the folder that `wm-gym train-model` or `wm-gym train-agent` wrote."
            )
        if arguments.evaluation is not None:
            raise ConfigError(f"--evaluation belongs to an agent, and {str(folder)!r} holds none; leave it out.")
        address = push_model(WorldModel.from_pretrained(folder), target, env_hub=arguments.env_hub)
    print(f"pushed to {address}")
    return 0
