"""Packaging: the repository's top-level folders become one namespace, ``wm_gym``.

``envs``, ``agents`` and ``data_collection`` are sub-packages of ``wm_gym`` when installed. CARLA's own PythonAPI
ships a top-level package called ``agents``, so plain top-level names of ours would collide with it.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "wm_gym" / "_version.py").read_text()).group(1)

FOLDER_OF_PACKAGE = {
    "wm_gym": "wm_gym",
    "wm_gym.envs": "envs",
    "wm_gym.agents": "agents",
    "wm_gym.data_collection": "data_collection",
}

# ONNX files and what runs them.
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]

# The server of wm-gym play and view.
PLAY = ["starlette>=0.37", "uvicorn>=0.29", "websockets>=15.0"]

# The Hugging Face Hub: models, agents and datasets by the name of their repository.
HUB = ["huggingface_hub>=1.0"]

# The documentation as a site; Python 3.11 or later. ruff breaks the lines of long signatures.
DOCS = ["zensical>=0.0.73", "mkdocstrings-python>=2.0", "griffe-pydantic>=1.3", "ruff>=0.6"]

# LeRobot's datasets: tables and videos.
LEROBOT = ["pyarrow>=17.0", "av>=14.0"]

# Searching for an agent's settings.
TUNE = ["optuna>=4.0"]

# The full mlflow has a page to look at runs; these suffice to record them, in a database of SQLite too.
MLFLOW = ["mlflow-skinny>=3.0", "sqlalchemy>=2.0.44", "alembic>=1.16"]


def packages() -> list[str]:
    """Every import name with an ``__init__.py``, sub-packages included."""
    found = []
    for package, folder in FOLDER_OF_PACKAGE.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.append(".".join((package, *inner)))
    return found


setup(
    name="wm_gym",
    version=VERSION,
    description="World models for driving as Gymnasium environments: collect, model, dream, train, evaluate.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The wm_gym contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["world model", "reinforcement learning", "autonomous driving", "gymnasium", "carla"],
    python_requires=">=3.10",
    packages=packages(),
    package_dir=FOLDER_OF_PACKAGE,
    package_data={
        "wm_gym": [
            "configs/*.yaml",
            "assets/**/*",
            "pages/*",
            "by_rows.cpp",
            "models/**/*.cpp",
            "models/*.h",
            "py.typed",
        ],
        "wm_gym.export": ["page/*"],
        "wm_gym.agents.reports": ["templates/*", "assets/*"],
        **{f"wm_gym.agents.{pages}": ["assets/*"] for pages in ("play", "view")},
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "gymnasium[box2d]>=1.2.3",
        "stable-baselines3>=2.7.1",
        "numpy>=1.26",
        "opencv-python>=4.8.1.78",
        "lpips>=0.1.4",
        "safetensors>=0.4.3",
        "pydantic>=2.6",
        "PyYAML>=6.0.2",
        "lightning-fabric>=2.3",
        "torchmetrics>=1.3",
        "tensorboard>=2.14",
        "scipy>=1.11",
        "networkx>=3.0",
        "fsspec>=2023.10",
        "matplotlib>=3.7",
        "jinja2>=3.1",
        "pillow>=10.3",
        "tqdm>=4.66.3",
        "typing_extensions>=4.8",
        "filelock>=3.13",
    ],
    extras_require={
        # CARLA publishes wheels for Linux and Windows on x86-64 and Python 3.10 to 3.12 only; elsewhere there is none.
        "carla": [
            'carla>=0.9.16;python_version < "3.13" and sys_platform != "darwin" and platform_machine in "x86_64 AMD64"',
            "msgpack>=1.0.8",  # for wm-gym carla-light
        ],
        # The first that stores frames without loss; it needs Python 3.11.
        "minari": ['minari[hdf5]>=0.5.4; python_version >= "3.11"'],
        "lerobot": LEROBOT,
        "ray": ["ray>=2.9"],
        "play": PLAY,
        "hub": HUB,
        "tune": TUNE,
        "wandb": ["wandb>=0.26"],
        "trackio": ["trackio>=0.43"],
        "mlflow": MLFLOW,
        "export": EXPORT,
        "tensorrt": ["tensorrt>=10.0", *EXPORT],
        "docs": DOCS,
        "dev": [
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "msgpack>=1.0.8",
            "ruff>=0.6",
            "mypy>=1.11",
            "types-PyYAML",
            "types-tqdm",
            "playwright>=1.40",  # drives Debian's Chromium; it downloads none of its own
            "nbclient>=0.10",  # runs the notebooks of the documentation, with ipykernel
            "ipykernel>=6.29",
            *EXPORT,
            *PLAY,
            *HUB,
            *LEROBOT,
            *TUNE,
        ],
    },
    entry_points={"console_scripts": ["wm-gym = wm_gym.cli.main:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        # Those that the test suite was run with; later ones may work.
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
