"""Bytes counted from a compiled program's text; compiling itself needs JAX's CUDA plugin."""

import importlib.util

import pytest

from benchmarks import gpu_bytes

HLO = """HloModule main, is_scheduled=true, entry_computation_layout={(u8[2,3]{1,0})->f32[2,3]{1,0}}

%fused_convert (p: u8[2,3]) -> (f32[2,3], s64[2]) {
  %p = u8[2,3]{1,0} parameter(0)
  %c = f32[2,3]{1,0} convert(%p)
  %i = s64[2]{0} iota(), iota_dimension=0
  ROOT %t = (f32[2,3]{1,0}, s64[2]{0}) tuple(%c, %i)
}

%adder (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%yes (y: f32[2,3]) -> f32[2,3] {
  %y = f32[2,3]{1,0} parameter(0)
  ROOT %doubled = f32[2,3]{1,0} add(%y, %y)
}

%no (n: f32[2,3]) -> f32[2,3] {
  ROOT %n = f32[2,3]{1,0} parameter(0)
}

%called (q: f32[2,3]) -> f32[2,3] {
  %q = f32[2,3]{1,0} parameter(0)
  ROOT %copy = f32[2,3]{0,1} copy(%q)
}

ENTRY %main (x: u8[2,3]) -> f32[2,3] {
  %x = u8[2,3]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %made = (f32[2,3]{1,0}, /*index=1*/s64[2]{0}) fusion(%x), kind=kLoop, calls=%fused_convert, metadata={op_name="a(b)"}
  %levels = f32[2,3]{1,0} get-tuple-element(%made), index=0
  %total = f32[] reduce(%levels, %zero), dimensions={0,1}, to_apply=%adder
  %any = pred[] custom-call(%total), custom_call_target="some"
  %chosen = f32[2,3]{1,0} conditional(%any, %levels, %levels), true_computation=%yes, false_computation=%no
  ROOT %last = f32[2,3]{1,0} call(%chosen), to_apply=%called
}
"""


def test_a_kernel_counts_what_it_reads_and_writes_and_what_is_inside_it_does_not():
    found = {each.name: each.moved for each in gpu_bytes.kernels(HLO)}
    assert found == {
        "made": 6 + 24 + 16,  # six bytes in; six floats and two whole numbers of eight bytes out
        "total": 24 + 4 + 4,
        "any": 4 + 1,
        "doubled": 24 + 24,  # of a branch; what is named twice is read once
        "copy": 24 + 24,  # of what is called
    }


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bytes, "described", lambda target: None)
    with pytest.raises(SystemExit, match=r"manifest\.json: .*No such file.*; try python -m benchmarks export"):
        gpu_bytes.main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .*No such file.*gpu\.txt"):
        gpu_bytes.main([str(tmp_path), f"--target={tmp_path / 'gpu.txt'}"])


def test_without_the_plugin_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: expected JAX's CUDA plugin, try pip install jax "
                                         r"jax-cuda12-plugin nvidia-cuda-nvcc-cu12$"):
        gpu_bytes.main([str(tmp_path)])
