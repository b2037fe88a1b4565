"""`$(...)` in launch files: those Humble and Jazzy share, except the ones that run code."""

from __future__ import annotations

import ast
import operator
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vla_inference.cli.launch_standin.xml_lines import Element

TRUE, FALSE = ("true", "1"), ("false", "0")


@dataclass
class Scope:
    """What substitutions can see at one point of a launch file; a group works on a copy."""

    variables: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    namespace: str = ""
    anonymous: dict[str, str] = field(default_factory=dict)  # shared by all scopes of a launch

    def copy(self) -> Scope:
        variables, environment = dict(self.variables), dict(self.environment)
        return Scope(variables, environment, self.namespace, self.anonymous)


def parse_bool(text: str, element: Element, what: str) -> bool:
    """launch's rule: exactly true/1/false/0 (upper or lower case), white space aside."""
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        raise element.fail(f"{what} is {text!r}", "make it true, 1, false or 0")
    return word in TRUE


def find_prefix(package: str, scope: Scope, element: Element) -> Path:
    """The install prefix of a package, from the ament index."""
    prefixes = [p for p in scope.environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in prefixes:
        if Path(prefix, "share/ament_index/resource_index/packages", package).is_file():
            return Path(prefix)
    raise element.fail(
        f"there is no package '{package}' among the {len(prefixes)} prefixes of AMENT_PREFIX_PATH",
        "build the workspace and source it, or correct the name",
    )


def find_executable(package: str, name: str, scope: Scope, element: Element) -> Path:
    folder = find_prefix(package, scope, element) / "lib" / package
    path = folder / name
    if path.is_file() and os.access(path, os.X_OK):
        return path
    there = sorted(p.name for p in folder.glob("*") if os.access(p, os.X_OK) and p.is_file())
    raise element.fail(
        f"package '{package}' has no executable '{name}'",
        f"it has {', '.join(there)}" if there else "build the package again",
    )


def evaluate(expression: str, element: Element) -> str:
    """`$(eval '...')` on literals: arithmetic, comparison, boolean operators, strings."""
    binary: dict[type, Callable] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
    }
    compare: dict[type, Callable] = {
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
        ast.In: lambda a, b: a in b,
        ast.NotIn: lambda a, b: a not in b,
    }
    unary: dict[type, Callable] = {ast.Not: operator.not_, ast.USub: operator.neg}

    def value(node: ast.expr):
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool)):
            return node.value
        # launch's own eval knows these two words
        if isinstance(node, ast.Name) and node.id in ("true", "false"):
            return node.id == "true"
        if isinstance(node, (ast.Tuple, ast.List)):
            return [value(e) for e in node.elts]
        if isinstance(node, ast.BinOp) and type(node.op) in binary:
            left, right = value(node.left), value(node.right)
            # '%' formats and '*' repeats where strings are about: no arithmetic
            if isinstance(node.op, ast.Add) or not {type(left), type(right)} & {str, list}:
                return binary[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp) and type(node.op) in unary:
            return unary[type(node.op)](value(node.operand))
        if isinstance(node, ast.BoolOp):
            result = value(node.values[0])
            for other in node.values[1:]:
                if bool(result) != isinstance(node.op, ast.And):
                    break
                result = value(other)
            return result
        if isinstance(node, ast.IfExp):
            return value(node.body if value(node.test) else node.orelse)
        if isinstance(node, ast.Compare) and all(type(o) in compare for o in node.ops):
            left = value(node.left)
            for op, right_node in zip(node.ops, node.comparators, strict=True):
                right = value(right_node)
                if not compare[type(op)](left, right):
                    return False
                left = right
            return True
        raise element.fail(
            f"$(eval) of {ast.unparse(node)!r} is not supported",
            "keep to numbers, strings, comparisons and arithmetic",
        )

    try:
        return str(value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise element.fail(f"$(eval) cannot work out {expression!r} ({error})", "fix it") from None


def split(text: str) -> list[str]:
    """Splits a substitution into words at white space outside quotes and inner `$(...)`."""
    words, word, depth, quote, begun, escaped = [], "", 0, "", False, False
    for i, c in enumerate(text):
        if escaped:
            word, escaped = word + c, False
            continue
        if depth == 0 and quote:
            if c == "\\" and text[i + 1 : i + 2] == quote:
                escaped = True
            elif c == quote:
                quote = ""
            else:
                word += c
            continue
        if depth == 0 and c in "'\"":
            quote, begun = c, True
            continue
        if c == "(" and i and text[i - 1] == "$":
            depth += 1
        elif c == ")" and depth:
            depth -= 1
        if c.isspace() and depth == 0:
            if begun or word:
                words.append(word)
            word, begun = "", False
        else:
            word += c
    return words + ([word] if begun or word else [])


def close_of(text: str, start: int) -> int:
    """Index of the `)` that ends the `$(` whose content begins at `start`; -1 if none does."""
    depth = 1
    for i in range(start, len(text)):
        if text[i] == "(":
            depth += 1
        elif text[i] == ")":
            depth -= 1
            if depth == 0:
                return i
    return -1


def expand(text: str, scope: Scope, element: Element) -> str:
    """`text` with each `$(...)` replaced by what it stands for."""
    result, at = "", 0
    for match in re.finditer(r"\$\(", text):
        if match.start() < at:
            continue  # inside one that is done already
        end = close_of(text, match.end())
        if end < 0:
            raise element.fail(f"'$(' without its ')' in {text!r}", "close it")
        result += text[at : match.start()]
        result += substitute(text[match.end() : end], scope, element)
        at = end + 1
    return result + text[at:]


def substitute(inner: str, scope: Scope, element: Element) -> str:
    """The value of one substitution, from the text between its parentheses."""
    name, _, rest = inner.strip().partition(" ")
    words = [expand(w, scope, element) for w in split(rest)]

    def count(*allowed: int) -> None:
        if len(words) not in allowed:
            raise element.fail(
                f"$({name}) takes {' or '.join(map(str, allowed))} arguments, not {len(words)}: "
                f"$({inner})",
                "quote arguments with spaces in them",
            )

    if name == "var":
        count(1)
        if words[0] not in scope.variables:
            known = ", ".join(sorted(scope.variables)) or "none"
            raise element.fail(f"there is no argument '{words[0]}'", f"declared are: {known}")
        return scope.variables[words[0]]
    if name == "env":
        count(1, 2)
        value = scope.environment.get(words[0], words[1] if len(words) == 2 else None)
        if value is None:
            raise element.fail(
                f"environment variable '{words[0]}' is not set",
                f"set it, or give a default: $(env {words[0]} value)",
            )
        return value
    if name in ("dirname", "filename"):
        count(0)
        return str(element.file.parent if name == "dirname" else element.file)
    if name == "find-pkg-prefix":
        count(1)
        return str(find_prefix(words[0], scope, element))
    if name == "find-pkg-share":
        count(1)
        return str(find_prefix(words[0], scope, element) / "share" / words[0])
    if name == "exec-in-pkg":  # launch's order: executable, then package
        count(2)
        return str(find_executable(words[1], words[0], scope, element))
    if name == "not":
        count(1)
        return str(not parse_bool(words[0], element, "$(not)")).lower()
    if name in ("and", "or"):
        count(2)
        values = [parse_bool(w, element, f"$({name})") for w in words]
        return str(all(values) if name == "and" else any(values)).lower()
    if name == "anon":
        count(1)
        made = f"{words[0]}_{os.getpid()}_{secrets.randbelow(2**63)}"
        return scope.anonymous.setdefault(words[0], made)
    if name == "eval":
        count(1)  # launch wants the expression quoted as one, too
        return evaluate(words[0], element)
    raise element.fail(
        f"substitution $({name}) is not supported",
        "use var, env, dirname, filename, find-pkg-share, find-pkg-prefix, exec-in-pkg, not, and, "
        "or, anon, eval; or install ros2launch",
    )
