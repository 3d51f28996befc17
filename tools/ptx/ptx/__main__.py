"""python -m ptx FILE.ptx: list the kernels of a file and every instruction the interpreter does not know."""

import sys

from . import load_file


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    module = load_file(arguments[0])
    print(f"PTX {module.version} for {module.target}")
    unsupported = 0
    for kernel in module.kernels.values():
        program = kernel.program
        print(
            f"{kernel.name}: {len(program.code) - 1} instructions, {program.shared.nbytes} bytes shared, "
            f"{len(program.unsupported)} unsupported"
        )
        for instruction in program.unsupported:
            print(f"   {instruction}")
        unsupported += len(program.unsupported)
    return 1 if unsupported else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
