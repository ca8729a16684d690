"""Devices, and how results files name the machine."""

import pytest

from utils.errors import UserError
from utils.runtime import name_processor, pick_device

CPUINFO = "processor\t: 0\nmodel name\t: AMD EPYC 9V74 \nflags\t\t: fpu sse2 {}\nbugs\t\t: avx512f\n"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx2 avx512f avx512_bf16 amx_bf16", "AMD EPYC 9V74 (AMX)"),
        ("avx2 avx512f avx512_bf16", "AMD EPYC 9V74 (AVX-512 with bfloat16)"),
        ("avx512f avx2", "AMD EPYC 9V74 (AVX-512)"),
        ("avx2", "AMD EPYC 9V74 (AVX2)"),
        ("ssse3", "AMD EPYC 9V74"),
    ],
)
def test_a_processor_is_named_with_its_widest_instructions(flags, name):
    assert name_processor(CPUINFO.format(flags)) == name


def test_other_processors_have_no_such_file():
    assert name_processor("") == name_processor("Hardware\t: BCM2835\n") == ""
    assert name_processor("model name\t: ARMv8\nFeatures\t: asimd\n") == "ARMv8"


@pytest.mark.parametrize("name", ["mps", "meta", "gpu", "cuda:x"])
def test_other_devices_are_refused_in_one_line(name):
    with pytest.raises(UserError, match=f"expected --device auto, cpu, cuda or cuda:N, got '{name}'"):
        pick_device(name)
