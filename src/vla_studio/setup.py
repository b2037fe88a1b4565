from glob import glob

from setuptools import find_packages, setup

PACKAGE = "vla_studio"


setup(
    name=PACKAGE,
    version="0.1.0",
    description="A web page to watch and operate a robot that a VLA model drives.",
    license="Apache-2.0",
    maintainer="VLA for ROS 2 maintainers",
    maintainer_email="maintainers@vla-ros2.invalid",
    python_requires=">=3.10",
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={PACKAGE: ["py.typed", "page/*", "page/vendor/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + PACKAGE]),
        ("share/" + PACKAGE, ["package.xml"]),
        ("share/" + PACKAGE + "/launch", sorted(glob("launch/*.launch.xml"))),
        ("share/" + PACKAGE + "/config", sorted(glob("config/*.[jy]*"))),
        ("share/" + PACKAGE + "/config/studio", sorted(glob("config/studio/*.yaml"))),
    ],
    zip_safe=False,
    entry_points={
        "console_scripts": ["studio_node = vla_studio.ros.executables:studio_node"],
        "vla.commands": [
            "listen = vla_studio.cli.listen:listen",
            "studio = vla_studio.cli.studio:studio",
        ],
    },
)
