"""The PTX interpreter itself: what it must compute, and what it must refuse. Needs neither nvcc nor a GPU."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from ptx import Memory, PtxError, load
from ptx.float_ops import arithmetic_function
from ptx.rounding import fma64
from ptx.wave import SCHEDULES

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"

KERNELS = Path(__file__).parent / "selftest"
SUM, TICKET, FAR = ((KERNELS / f"{name}.ptx").read_text() for name in ("sum", "ticket", "far"))


def run_sum(text=SUM, n=1000, shift=0, **options):
    memory = Memory()
    x, y = memory.array(np.arange(1000, dtype=np.float32), readonly=True), memory.empty(1, np.float32)
    stats = load(text)["sum"].launch(1, 96, [x.addr + shift, y, n], seed=3, **options)
    return float(y.read()[0]), stats


def run_ticket(text=TICKET, blocks=5, **options):
    memory = Memory()
    partial, counter, out = memory.empty(blocks, np.uint32), memory.zeros(1, np.uint32), memory.empty(1, np.uint32)
    stats = load(text)["ticket"].launch(blocks, 64, [partial, counter, out], seed=1, **options)
    return int(out.read()[0]), stats


def run_body(body, *arguments, grid=1, block=32, memory=None, **options):
    """Run statements. Parameters are in %rd1, %rd2, ..., the thread number in %r1 and four times that in %rd10."""
    names = "abcdef"[: len(arguments)]
    text = f"{HEADER}.visible .entry k({', '.join(f'.param .u64 {name}' for name in names)}) {{\n"
    text += ".reg .pred %p<9>; .reg .b32 %r<20>; .reg .f32 %f<9>; .reg .b64 %rd<20>;\n"
    text += "".join(f"ld.param.u64 %rd{i}, [{name}];\n" for i, name in enumerate(names, 1))
    text += f"mov.u32 %r1, %tid.x; mul.wide.u32 %rd10, %r1, 4;\n{body}\nret; }}"
    return load(text)["k"].launch(grid, block, list(arguments), mem=memory, **options)


# ---- results
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sum_of_a_block(schedule):
    total, stats = run_sum(schedule=schedule)
    assert total == 499500.0
    assert not stats.warnings and stats.barriers == 1
    assert stats.load_bytes == 4000 and stats.load_sectors == 125 and stats.store_bytes == 4
    assert stats.ops == {"ld.global 4 bytes": 1000, "st.global 4 bytes": 1}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("max_lanes", [64, 1 << 15])
def test_last_block_done(schedule, max_lanes):
    total, stats = run_ticket(schedule=schedule, max_lanes=max_lanes)
    assert total == 5 * 100 + 10
    assert stats.ops["atomic add"] == 5 and not stats.warnings


def test_coverage():
    kernel = load(SUM)["sum"]
    memory = Memory()
    kernel.launch(1, 32, [memory.array(np.ones(8, np.float32)), memory.empty(1, np.float32), 0])
    assert [text.split(": ")[1] for text in kernel.unexecuted()] == [
        "mul.wide.u32 %rd3, %r4, 4", "add.s64 %rd4, %rd1, %rd3", "ld.global.f32 %f2, [%rd4]",
        "add.f32 %f1, %f1, %f2", "add.s32 %r4, %r4, %r3", "bra.uni LOOP",
    ]  # fmt: skip


def test_source_lines_in_errors_and_coverage():
    text = SUM.replace("ld.global.f32", ".loc 1 42 7\n  ld.global.f32") + '\n.file 1 "some/where/sum.cu"\n'
    with pytest.raises(PtxError, match=r"sum\.cu:42"):
        run_sum(text, n=1001)


def test_dynamic_shared_memory_and_vectors():
    memory = Memory()
    x, y = memory.array(np.arange(128, dtype=np.float32)), memory.empty(128, np.float32)
    text = f"""{HEADER}.extern .shared .align 16 .b8 pool[];
    .visible .entry k(.param .u64 .ptr .global .align 16 a, .param .u64 b) {{
    .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 16;
    add.s64 %rd1, %rd1, %rd3; ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd1];
    mov.u32 %r2, pool; shl.b32 %r3, %r1, 4; add.s32 %r3, %r2, %r3; st.shared.v4.f32 [%r3], {{%f1, %f2, %f3, %f4}};
    bar.sync 0;
    sub.s32 %r4, 31, %r1; shl.b32 %r4, %r4, 4; add.s32 %r4, %r2, %r4; ld.shared.v2.f32 {{%f1, %f2}}, [%r4+8];
    add.s64 %rd2, %rd2, %rd3; st.global.v2.f32 [%rd2], {{%f1, %f2}}; st.global.v2.f32 [%rd2+8], {{%f2, %f1}}; ret; }}"""
    kernel = load(text)["k"]
    kernel.launch(1, 32, [x, y], shared=512)
    reverse = np.arange(128, dtype=np.float32).reshape(32, 4)[::-1]
    np.testing.assert_array_equal(y.read().reshape(32, 4), reverse[:, [2, 3, 3, 2]])
    with pytest.raises(PtxError, match=r"out-of-bounds 16-byte shared access \(dynamic shared memory \+ 496 bytes\)"):
        kernel.launch(1, 32, [x, y], shared=496)


def test_structs_and_constants():
    text = f"""{HEADER}.const .align 4 .b32 table[2] = {{0f3F800000, 0f40000000}}; .global .align 4 .u32 state = 5;
    .visible .entry k(.param .u64 out, .param .align 8 .b8 pair[16]) {{
    .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [pair+8]; ld.const.f32 %f1, [table+4]; cvt.rzi.s32.f32 %r2, %f1;
    mov.u64 %rd2, state; ld.global.u32 %r3, [%rd2]; mad.lo.s32 %r4, %r1, %r2, %r3; st.global.u32 [%rd2], %r4;
    st.global.u32 [%rd1], %r4; ret; }}"""
    module, memory = load(text), Memory()
    out = memory.empty(1, np.uint32)
    for number, expected in ((10, 25), (7, 39)):  # the global variable keeps its value between launches
        module["k"].launch(1, 1, [out, np.array([0, number], np.uint64).tobytes()])
        assert out.read()[0] == expected


def test_functions_are_inlined():
    text = f"""{HEADER}.func (.param .b32 result) twice(.param .b32 value) {{ .reg .b32 %r<3>; .reg .pred %p<2>;
    ld.param.b32 %r1, [value]; setp.eq.s32 %p1, %r1, 3; @%p1 bra ODD; add.s32 %r2, %r1, %r1;
    st.param.b32 [result], %r2; ret; ODD: st.param.b32 [result], 77; ret; }}
    .visible .entry k(.param .u64 out) {{ .reg .b32 %r<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
    {{ .param .b32 argument; .param .b32 answer; st.param.b32 [argument], %r1;
    call.uni (answer), twice, (argument); ld.param.b32 %r2, [answer]; }}
    st.global.u32 [%rd1], %r2; ret; }}"""
    memory = Memory()
    out = memory.empty(32, np.int32)
    load(text)["k"].launch(1, 32, [out])
    want = 2 * np.arange(32)
    want[3] = 77
    np.testing.assert_array_equal(out.read(), want)


def test_votes_of_divergent_lanes():
    memory = Memory()
    out = memory.zeros((3, 32), np.uint32)
    run_body(
        """add.s64 %rd2, %rd1, %rd10; setp.lt.u32 %p1, %r1, 8;
        @%p1 bra LOW; activemask.b32 %r2; st.global.u32 [%rd2], %r2;
        LOW: bar.warp.sync -1; and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 1; vote.sync.ballot.b32 %r4, %p2, -1;
        st.global.u32 [%rd2+128], %r4; vote.sync.any.pred %p3, %p1, -1; vote.sync.all.pred %p4, %p1, -1;
        selp.u32 %r5, 1, 0, %p3; selp.u32 %r6, 2, 0, %p4; or.b32 %r5, %r5, %r6; st.global.u32 [%rd2+256], %r5;""",
        out,
    )
    active, odd, some = out.read()
    assert (active[:8] == 0).all() and (active[8:] == 0xFFFFFF00).all()
    assert (odd == 0xAAAAAAAA).all() and (some == 1).all()


@pytest.mark.parametrize("name, expected", [("add", 33 * 32), ("inc", 1056 % 8), ("max", 31), ("exch", 0)])
def test_integer_atomics(name, expected):
    memory = Memory()
    counter, out = memory.zeros(1, np.uint32), memory.empty(32, np.uint32)
    operand = {"add": 33, "inc": 7, "max": "%r1", "exch": 0}[name]
    run_body(
        f"add.s64 %rd3, %rd2, %rd10; atom.global.{name}.u32 %r2, [%rd1], {operand}; st.global.u32 [%rd3], %r2;",
        counter, out,
    )  # fmt: skip
    if name == "inc":
        np.testing.assert_array_equal(out.read(), np.arange(32) % 8)
    assert counter.read()[0] == expected


@pytest.mark.parametrize("body, exact, error", [
    ("rcp.approx.ftz.f32 %f2, %f1;", np.reciprocal, 2.0**-23),
    ("ex2.approx.f32 %f2, %f1;", np.exp2, 2.0**-22),
])  # fmt: skip
def test_approximations_use_their_error_and_no_more(body, exact, error):
    memory, x = Memory(), np.random.default_rng(0).uniform(1, 4, 4096).astype(np.float32)
    source, out = memory.array(x, readonly=True), memory.empty(4096, np.float32)
    body = f"""mov.u32 %r2, %ctaid.x; mad.lo.s32 %r1, %r2, 256, %r1; mul.wide.u32 %rd10, %r1, 4;
        add.s64 %rd3, %rd1, %rd10; ld.global.f32 %f1, [%rd3];
        {body} add.s64 %rd4, %rd2, %rd10; st.global.f32 [%rd4], %f2;"""
    run_body(body, source, out, grid=16, block=256)
    truth = exact(x.astype(np.float64))
    np.testing.assert_array_equal(out.read(), truth.astype(np.float32))
    run_body(body, source, out, grid=16, block=256, approx_noise=True, seed=1)
    relative = np.abs(out.read() - truth) / truth
    assert 0.8 * error < relative.max() <= error


def random_operands(count=3000):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(count) * 2.0 ** rng.integers(-30, 30, count) for _ in range(3))
    c[: count // 3] = -(a * b)[: count // 3] * (1 + 2.0**-50)
    return a, b, c


def test_fma64_against_fractions():
    a, b, c = random_operands()
    for result, x, y, z in zip(fma64(a, b, c), a, b, c, strict=True):
        assert result == float(Fraction(x) * Fraction(y) + Fraction(z))


def test_fma32_against_fractions():
    a, b, c = (values.astype(np.float32) for values in random_operands())
    # products whose sum with c lies next to a tie, and subnormal results
    a[:500], b[:500] = 1 + 2.0**-12, 1 + 2.0**-12 + np.arange(500, dtype=np.float32) * 2.0**-23
    c[:500] = np.where(np.arange(500) % 2, 2.0**-60, -(2.0**-60))
    a[500:600] *= 2.0**-70
    b[500:600] *= 2.0**-70
    c[500:600] *= 2.0**-140
    nearest, down = arithmetic_function("fma", "f32", []), arithmetic_function("fma", "f32", ["rm"])
    infinity = np.float32(np.inf)
    for result, below, x, y, z in zip(nearest(a, b, c), down(a, b, c), a, b, c, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        distance = abs(Fraction(float(result)) - exact)
        for neighbour in (np.nextafter(result, -infinity), np.nextafter(result, infinity)):
            other = abs(Fraction(float(neighbour)) - exact)
            assert distance < other or distance == other and result.view(np.uint32) % 2 == 0
        assert Fraction(float(below)) <= exact < Fraction(float(np.nextafter(below, infinity)))


# a quiet NaN, and one with the sign bit and another payload
NANS = {
    "f16": (0x7E00, 0xFC01),
    "bf16": (0x7FC0, 0xFF81),
    "f32": (0x7FC00000, 0xFF800001),
    "f64": (0x7FF8000000000000, 0xFFF0000000000001),
}


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("source", NANS)
def test_nan_to_integer(source, mode):
    """The PTX manual on cvt: 0 if the source is no f64 and the destination at most 32 bits wide, else the sign bit.

    f32 to s32, u32, s64, u64 and f64 to s32, s64, u64 were also seen on a GPU (H200).
    """
    size = {"f64": 64, "f32": 32}.get(source, 16)
    for width in (8, 16, 32, 64):
        expected = 1 << (width - 1) if source == "f64" or width == 64 else 0
        for sign in "us":
            # the register is wider than 8 and 16 bits: .s8 and .s16 are extended by their sign
            whole = expected - 2 * expected * (sign == "s") & 0xFFFFFFFF if width < 64 else expected
            for nan in NANS[source]:
                out = Memory().empty(1, np.uint64)
                result, widen = ("%r2", "cvt.u64.u32 %rd2, %r2;") if width < 64 else ("%rd2", "")
                run_body(
                    f""".reg .b{size} %value; mov.b{size} %value, {nan:#x};
                    cvt.{mode}.{sign}{width}.{source} {result}, %value; {widen} st.global.u64 [%rd1], %rd2;""",
                    out,
                    block=1,
                )
                assert out.read()[0] == whole, f"{mode}.{sign}{width}.{source} of {nan:#x}"


# ---- more than 2**31 elements
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_window_of_a_huge_buffer(schedule):
    total = 3 << 30
    last = total // 128
    memory = Memory()
    window = memory.window(total, total - 256, np.arange(256, dtype=np.float32))
    load(FAR)["far"].launch(last, 128, [window], blocks=[last - 2, last - 1], schedule=schedule)
    np.testing.assert_array_equal(window.read(), np.arange(256) + 1)
    narrow = FAR.replace("shl.b64 %rd2, %rd2, 2;", "cvt.u32.u64 %r4, %rd2; mul.wide.s32 %rd2, %r4, 4;")
    with pytest.raises(PtxError, match="out-of-bounds"):
        load(narrow)["far"].launch(last, 128, [window], blocks=[last - 1])


# ---- defects that must be reported
SHUFFLE = "shfl.sync.bfly.b32 %r6|%p2, %r5, 1, 31, -1;"
DEFECTS = {
    "out of bounds": ("out-of-bounds 4-byte global read", {"n": 1001}),
    "misaligned": ("misaligned 4-byte global access", {"shift": 2}),
    "race without a barrier": ("data race: read of a shared byte", {"bar.sync 0;": ""}),
    "uninitialised shared memory": ("uninitialised shared read", {"shr.u32 %r12, %r3, 5;": "mov.u32 %r12, 4;"}),
    "shared memory out of bounds": ("out-of-bounds 4-byte shared access", {"part[128]": "part[8]"}),
    "readonly buffer": ("write to a readonly buffer", {"st.global.f32 [%rd2], %f4;": "st.global.f32 [%rd1], %f4;"}),
    "uninitialised global memory": ("uninitialised 4-byte global read", {"SKIP:": "SKIP: ld.global.f32 %f6, [%rd2];"}),
    "divergent barrier": ("barrier divergence", {"[%r9], %f1;": "[%r9], %f1; bar.sync 0;"}),
    "deadlock": ("deadlock", {"@%p3 bra SKIP;": "@%p3 bra SKIP; bar.sync 0;", "SKIP:": f"SKIP: {SHUFFLE}"}),
    "lane outside its mask": ("outside its member mask", {SHUFFLE: SHUFFLE.replace("-1", "1")}),
    "endless loop": ("endless loop", {"add.s32 %r4, %r4, %r3;": ""}),
    "unknown opcode": ("unknown opcode frob", {"add.f32 %f4, %f4, %f5;": "frob.f32 %f4, %f4, %f5;"}),
    "unknown modifier": ("modifier .rx", {"add.f32 %f4, %f4, %f5;": "add.rx.f32 %f4, %f4, %f5;"}),
    "unknown operand": ("special register %clock", {"mov.u32 %r11, 0;": "mov.u32 %r11, %clock;"}),
    "float atomic": ("float atomics are refused", {"st.global.f32 [%rd2], %f4;": "red.global.add.f32 [%rd2], %f4;"}),
    "transcendental": ("unknown opcode sin", {"add.f32 %f4, %f4, %f5;": "sin.approx.f32 %f4, %f5;"}),
    "named barrier": ("named or partial barrier", {"bar.sync 0;": "bar.sync 1, 64;"}),
    "trap": ("trap", {"st.global.f32 [%rd2], %f4;": "trap;"}),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_reported(defect):
    message, changes = DEFECTS[defect]
    text = SUM
    for old, new in changes.items():
        if isinstance(new, str):
            assert old in text
            text = text.replace(old, new)
    options = {key: value for key, value in changes.items() if isinstance(value, int)}
    with pytest.raises(PtxError, match=message) as caught:
        run_sum(text, max_steps=20000, **options)
    assert "line " in str(caught.value)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("removed", ["membar.gl;", "bar.sync 0;"])
def test_missing_order_between_blocks_is_a_race(removed, schedule):
    with pytest.raises(PtxError, match="data race|uninitialised"):
        run_ticket(TICKET.replace(removed, "", 1), schedule=schedule)


@pytest.mark.parametrize("body, message", [
    ("st.global.u32 [%rd1], %r1;", "several threads write different values"),
    ("st.global.u32 [%rd2], %r1; ld.global.u32 %r2, [%rd1];", "data race: read of a global"),
    ("ld.global.u32 %r2, [%rd1]; st.global.u32 [%rd2], %r1;", "data race: write of a global"),
    ("st.global.u32 [%rd2], %r1; ld.global.nc.u32 %r2, [%rd2];", "has written"),
])  # fmt: skip
def test_races_of_one_warp(body, message):
    memory = Memory()
    with pytest.raises(PtxError, match=message):
        run_body(f"add.s64 %rd2, %rd1, %rd10; {body}", memory.zeros(32, np.uint32))


def test_same_value_by_several_threads_is_a_warning():
    stats = run_body("st.global.u32 [%rd1], 7;", Memory().zeros(1, np.uint32))
    assert stats.warnings == {"two threads wrote the same value to one address": 1}


def test_shuffle_from_an_absent_lane_is_a_warning():
    memory = Memory()
    out = memory.zeros(32, np.uint32)
    stats = run_body(
        """setp.gt.u32 %p1, %r1, 15; @%p1 bra END; shfl.sync.down.b32 %r2, %r1, 8, 31, 65535;
        add.s64 %rd2, %rd1, %rd10; st.global.u32 [%rd2], %r2; END:""",
        out,
    )
    assert list(stats.warnings) == ["shfl read a lane that takes no part (result is a NaN pattern)"]
    np.testing.assert_array_equal(out.read()[:16], [*range(8, 16), *[0x7FFFFFFF] * 8])


@pytest.mark.parametrize("options, message", [
    ({"block": 1025}, "launch configuration"),
    ({"grid": 0}, "launch configuration"),
    ({"schedule": "alphabetical"}, "schedule 'alphabetical'"),
])  # fmt: skip
def test_launch_configuration_is_checked(options, message):
    with pytest.raises(PtxError, match=message):
        run_body("", Memory().zeros(1, np.uint32), **options)


def test_arguments_are_checked():
    kernel, memory = load(SUM)["sum"], Memory()
    buffer = memory.zeros(1, np.float32)
    with pytest.raises(PtxError, match="takes 3 arguments, got 2"):
        kernel.launch(1, 32, [buffer, buffer])
    with pytest.raises(PtxError, match="argument n: 8 bytes given, 4 expected"):
        kernel.launch(1, 32, [buffer, buffer, np.float64(1)])
    with pytest.raises(PtxError, match="different Memory"):
        kernel.launch(1, 32, [buffer, Memory().zeros(1, np.float32), 0])
    with pytest.raises(PtxError, match="no argument is a Buffer"):
        kernel.launch(1, 32, [0, 0, 0])
    with pytest.raises(KeyError, match="matches 0 kernels"):
        load(SUM)["product"]
