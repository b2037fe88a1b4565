from glob import glob

from setuptools import find_packages, setup

PACKAGE = "vla_training"


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Data loading, training and evaluation of vision-language-action models.",
    license="Apache-2.0",
    maintainer="VLA for ROS 2 maintainers",
    maintainer_email="maintainers@vla-ros2.invalid",
    python_requires=">=3.10",
    # For pip, without our own packages, which no index has: name all folders in one call. A
    # workspace installs the versions that are tested (requirements/ at its top).
    install_requires=[
        "av",
        "deflate",
        "google-crc32c",
        "h5py",
        "huggingface_hub",
        "lz4",
        "matplotlib",
        "mcap",
        "mujoco",
        "numpy<2",
        "pillow",
        "pyarrow<26",
        "pyyaml",
        "rosbags",
        "safetensors",
        "scipy",
        "simplejpeg",
        "tensorboard",
        "tokenizers",
        "torch",
        "typer",
        "zstandard",
    ],
    extras_require={"rerun": ["rerun-sdk"], "wandb": ["wandb"]},
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={PACKAGE: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + PACKAGE]),
        ("share/" + PACKAGE, ["package.xml"]),
        ("share/" + PACKAGE + "/launch", sorted(glob("launch/*.launch.xml"))),
        ("share/" + PACKAGE + "/config", sorted(glob("config/*.yaml"))),
    ],
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "evaluate = vla_training.cli.eval:main",
            "record_node = vla_training.ros.executables:record_node",
            "training_node = vla_training.ros.executables:training_node",
            "validation_node = vla_training.ros.executables:validation_node",
        ],
        "vla.commands": [
            "convert = vla_training.cli.convert:convert",
            "data = vla_training.cli.data:data",
            "estimate = vla_training.cli.estimate:estimate",
            "eval = vla_training.cli.eval:evaluate",
            "finetune = vla_training.cli.finetune:finetune",
            "improve = vla_training.cli.improve:improve",
            "merge = vla_training.cli.finetune:merge",
            "new = vla_training.cli.new:new",
            "quantize = vla_training.cli.quantize:quantize",
            "record = vla_training.cli.record:record",
            "study = vla_training.cli.study:study",
            "train = vla_training.cli.train:train",
            "validate = vla_training.cli.validate:validate",
        ],
    },
)
