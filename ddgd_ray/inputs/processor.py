"""What this machine's processor can do, without torch."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # as x86 and ARM name it


def emulates_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has no bfloat16 arithmetic, so that torch emulates it, slower than float32.

    False where the system does not tell, as on macOS.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool(flags) and not BFLOAT16 & set(flags[0])
