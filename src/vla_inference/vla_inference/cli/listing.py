"""`vla models` and `vla robots`: what is installed."""

from __future__ import annotations

import re
from pathlib import Path

from vla_inference.cli.output import JsonOption, print_json
from vla_inference.system.prefixes import share_folders

COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)


def models(as_json: JsonOption = False) -> int:
    """List the models that are installed and the families that can be loaded."""
    from vla_inference.policies.registry import describe_policy, families

    folders = [f.parent for s in share_folders("vla_inference") for f in s.rglob("config.json")]
    found = [describe_policy(folder) for folder in sorted(folders)]
    names = sorted(families())
    if as_json:
        print_json({"models": [d.values for d in found], "families": names})
        return 0
    for one in found:
        print(f"{one.values['name']}  {one.values['folder']}")
    print(f"\n--model takes a folder or a Hub id of these families: {', '.join(names)};")
    print("openpi:ws://HOST:PORT is a model served elsewhere. `vla info MODEL` describes one.")
    return 0


def robots(as_json: JsonOption = False) -> int:
    """List the launch files that connect a robot."""
    found = [
        {"name": path.name.removesuffix(".launch.xml"), "about": first_sentence(path)}
        for folder in share_folders("vla_bringup", "launch")
        for path in sorted(folder.glob("*.launch.xml"))
    ]
    if as_json:
        print_json({"robots": found})
        return 0
    width = max((len(r["name"]) for r in found), default=0)
    for one in found:
        print(f"{one['name']:<{width}}  {one['about']}")
    print("\n`vla launch vla_bringup NAME.launch.xml` starts one; --show-args: its arguments.")
    return 0


def first_sentence(path: Path) -> str:
    """Of the comment at a launch file's head."""
    comment = COMMENT.search(path.read_text(encoding="utf-8"))
    text = " ".join(comment[1].split()) if comment else ""
    return re.split(r"(?<=\.) ", text)[0]
