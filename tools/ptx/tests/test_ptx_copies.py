"""cp.async: what it brings, and that whoever touches it before it is there is told so. Needs neither nvcc nor a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import Memory, PtxError, load
from ptx.wave import SCHEDULES

# Thread i copies 16 bytes of %rd1 to `pool` + 16 i; the last lines write what thread 63 - i copied to %rd2.
TEXT = """.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 pool[];
.visible .entry k(.param .u64 a, .param .u64 b) {
.reg .pred %p<9>; .reg .b32 %r<20>; .reg .f32 %f<9>; .reg .b64 %rd<20>;
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; cvt.u64.u32 %rd3, %r2;
add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3; mov.u32 %r3, pool; add.s32 %r4, %r3, %r2;
sub.s32 %r5, 63, %r1; shl.b32 %r5, %r5, 4; add.s32 %r5, %r3, %r5; mov.u32 %r6, 16;
BODY
ret; }
"""
COPY = "cp.async.cg.shared.global [%r4], [%rd1], 16, %r6; cp.async.commit_group;"
WAIT, BARRIER = "cp.async.wait_group 0;", "bar.sync 0;"
READ = "ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r5]; st.global.v4.f32 [%rd2], {%f1, %f2, %f3, %f4};"


def run(body, shared=2048, values=None, **options):
    memory = Memory()
    values = np.arange(256, dtype=np.float32) if values is None else values
    source, out = memory.array(values), memory.zeros((64, 4), np.float32)
    stats = load(TEXT.replace("BODY", body))["k"].launch(1, 64, [source, out], shared=shared, seed=5, **options)
    return out.read(), stats


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_copy_arrives(schedule):
    result, stats = run(COPY + WAIT + BARRIER + READ, schedule=schedule)
    np.testing.assert_array_equal(result, np.arange(256, dtype=np.float32).reshape(64, 4)[::-1])
    assert stats.ops["cp.async 16 bytes"] == 64 and stats.load_bytes == 1024 and not stats.warnings


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_arrive_in_order(schedule):
    """wait_group 1 waits for all groups but the last, wait_all for all copies, committed or not."""
    second = "cp.async.ca.shared.global [%r4+1024], [%rd1], 8; cp.async.commit_group;"
    for wait in ("cp.async.wait_group 1;", "cp.async.wait_all;"):
        result, stats = run(COPY + second + wait + BARRIER + READ, schedule=schedule)
        np.testing.assert_array_equal(result[0], [252, 253, 254, 255])
        assert bool(stats.warnings) == (wait != "cp.async.wait_all;")
    assert not run(COPY.replace("cp.async.commit_group;", "cp.async.wait_all;") + BARRIER + READ)[1].warnings
    with pytest.raises(PtxError, match="cp.async brings: shared read"):
        run(second + COPY + "cp.async.wait_group 1;" + BARRIER + READ, schedule=schedule)


def test_zeros_behind_what_is_copied():
    """Bytes beyond the count are not read, and need not exist."""
    count = "setp.gt.u32 %p1, %r1, 61; @%p1 mov.u32 %r6, 4; setp.gt.u32 %p1, %r1, 62; @%p1 mov.u32 %r6, 0;"
    result, stats = run(count + COPY + WAIT + BARRIER + READ, values=np.arange(249, dtype=np.float32))
    np.testing.assert_array_equal(result[:3], [[0, 0, 0, 0], [248, 0, 0, 0], [244, 245, 246, 247]])
    assert stats.load_bytes == 62 * 16 + 4


@pytest.mark.parametrize("body, message", [
    (COPY + BARRIER + READ, "not waited for, what cp.async brings: shared read"),
    (COPY.replace("cp.async.commit_group;", "") + WAIT + BARRIER + READ, "not waited for"),
    (COPY + BARRIER + WAIT + READ, "data race: read of a shared byte"),
    (COPY + WAIT + READ, "data race: read of a shared byte|not waited for|uninitialised"),
    (COPY + "st.shared.u32 [%r4], 1;" + WAIT, "not waited for, what cp.async brings: shared write"),
    (COPY + COPY + WAIT, "not waited for, what cp.async brings: shared write"),
    (COPY + WAIT + BARRIER + READ + COPY + WAIT, "data race: write of a shared byte"),
    ("add.s32 %r4, %r4, 4;" + COPY, "misaligned 16-byte shared"),
    ("add.s64 %rd1, %rd1, 4;" + COPY, "misaligned 16-byte global"),
    ("add.s64 %rd1, %rd1, 16;" + COPY, "out-of-bounds 16-byte global read"),
    ("add.s32 %r4, %r4, 1040;" + COPY, "out-of-bounds 16-byte shared"),
    ("mov.u32 %r6, 20;" + COPY, "copy of 20 into 16 bytes"),
    ("cp.async.cg.shared.global [%r4], [%rd1], 4;", "copy of 4 bytes"),
    ("cp.async.bulk.shared.global [%r4], [%rd1], 16;", "modifier .bulk"),
    ("cp.async.ca.global.shared [%rd1], [%r4], 16;", "form of the copy"),
])  # fmt: skip
def test_defect_is_reported(body, message):
    with pytest.raises(PtxError, match=message):
        run(body)


def test_a_copy_that_nobody_waits_for_is_a_warning():
    assert run(COPY)[1].warnings == {"what cp.async brought was never waited for": 1}
