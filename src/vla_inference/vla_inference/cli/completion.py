"""`vla completion SHELL`: a script that completes commands, options and their values.

It is made of what the installed commands declare and holds all of it, so that a Tab starts no
Python; make it again after an update.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer.main

from vla_inference.cli.config_file import with_config_file
from vla_inference.cli.options import CommandOption, options_of

BASH = """# Completion of vla, by `vla completion`.
_vla() {
  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  local command="${COMP_WORDS[1]}" words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words=@all
  else
    case "$command $before" in
@values
    esac
    if [ -z "$words" ] && [ "${current:0:1}" = - ]; then
      case "$command" in
@options
      esac
    elif [ -z "$words" ] && [ "$COMP_CWORD" -eq 2 ]; then
      case "$command" in
@first
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o bashdefault -o default -F _vla vla ./vla
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


class Shell(str, Enum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True)
class Completed:
    """A command as the scripts need it.

    first: what its first word may be: a group's commands, or the values of the first argument.
    """

    name: str
    about: str
    options: tuple[CommandOption, ...] = ()
    first: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """All names of options."""
        return [n for o in self.options for n in (*o.names, *o.off)] + ["--help"]


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell that reads the script.")],
) -> int:
    """Print a script that completes `vla` in a shell: source <(vla completion bash)."""
    print(SCRIPTS[shell](list(find_completed())), end="")
    return 0


def find_completed() -> Iterator[Completed]:
    """All installed commands; of one that cannot be imported here only the name."""
    from vla_inference.cli.main import find_subcommands, summary

    for name, point in sorted(find_subcommands().items()):
        about = summary(point)
        try:
            function = point.load()
        except ImportError:  # such as rclpy's, where there is no ROS
            yield Completed(name, about)
            continue
        if isinstance(function, typer.Typer):
            group: Any = typer.main.get_command(function)  # of one command: that command
            yield Completed(name, about, first=tuple(getattr(group, "commands", ())))
            continue
        found = options_of(with_config_file(function))
        arguments = [o for o in found if not o.names[0].startswith("-")]
        options = tuple(o for o in found if o not in arguments)
        yield Completed(name, about, options, arguments[0].choices if arguments else ())


def bash(commands: Sequence[Completed]) -> str:
    values = [
        _case(f"{command.name} {name}", option.choices)
        for command in commands
        for option in command.options
        for name in option.names
        if option.choices
    ]
    parts = {
        "@all": shlex.quote(" ".join([*(c.name for c in commands), "--help", "--version"])),
        "@values": "\n".join(values),
        "@options": "\n".join(_case(c.name, c.words()) for c in commands),
        "@first": "\n".join(_case(c.name, c.first) for c in commands if c.first),
    }
    script = BASH
    for mark, text in parts.items():
        script = script.replace(mark, text)
    return script


def _case(pattern: str, words: Sequence[str]) -> str:
    return f"      {shlex.quote(pattern)}) words={shlex.quote(' '.join(words))} ;;"


def zsh(commands: Sequence[Completed]) -> str:
    """bash's, which zsh can read."""
    return ZSH + bash(commands)


def fish(commands: Sequence[Completed]) -> str:
    lines = ["# Completion of vla, by `vla completion`."]
    for command in commands:
        lines.append(_fish("test (count (commandline -opc)) -eq 1", command.about, command.name))
        here = f"string match -q -- {command.name} (commandline -opc)[2]"
        if command.first:
            alone = f"{here}; and test (count (commandline -opc)) -eq 2"
            lines.append(_fish(alone, "", " ".join(command.first)))
        for option in command.options:
            names = (*option.names, *option.off)
            dashed = " ".join(f"-{'l' if n[:2] == '--' else 's'} {n.lstrip('-')}" for n in names)
            takes = "" if option.flag else " -r"
            lines.append(_fish(here, option.help, " ".join(option.choices), dashed + takes))
    return "\n".join(lines) + "\n"


def _fish(condition: str, about: str, values: str = "", more: str = "") -> str:
    words = ["complete -c vla", "-n", _quoted(condition), *filter(None, [more])]
    words += ["-f", "-a", _quoted(values)] if values else []
    return " ".join([*words, *(["-d", _quoted(about)] if about else [])])


def _quoted(text: str) -> str:
    """In single quotes, where fish reads backslash and quote alone as special."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SCRIPTS: dict[Shell, Callable[[Sequence[Completed]], str]] = {
    Shell.bash: bash,
    Shell.zsh: zsh,
    Shell.fish: fish,
}
