"""Parsing the text of compiled programs, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jpeft.mesh.layout import Layout
from jpeft.plan.program_text import Text, groups_of, size_of


def shape(*dims, spec=None, mesh=None):
    sharding = None if mesh is None else NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)


def text_of(function, *args, **options) -> Text:
    return Text.of(jax.jit(function).lower(*args).compile().as_text() or "", **options)


def test_messages_are_counted_as_often_as_their_loop_runs():
    """Each iteration multiplies column shards, then row shards, and all-reduces the partial sums, float32 [8, 16]."""
    mesh = Layout.of_devices(model=4).mesh

    def layers(x, first, second):
        return jax.lax.scan(lambda x, pair: (jnp.tanh(x @ pair[0]) @ pair[1], None), x, (first, second))[0]

    args = (
        shape(8, 16, spec=P(), mesh=mesh),
        shape(5, 16, 32, spec=P(None, None, "model"), mesh=mesh),
        shape(5, 32, 16, spec=P(None, "model"), mesh=mesh),
    )
    text = text_of(layers, *args)
    found, size = text.messages(), 5 * 8 * 16 * 4
    assert found.count == {"all-reduce": 5}
    assert found.bytes == {"all-reduce": size}
    assert found.sent == pytest.approx(2 * 3 / 4 * size)  # around a ring of four, twice
    assert found.between_hosts == 0
    assert text.messages(devices_per_host=2).between_hosts == found.sent
    assert text.messages(devices_per_host=4).between_hosts == 0


# Output of XLA's TPU compiler: tiled layouts with memory spaces, asynchronous pairs, no trip counts of loops.
TPU = """HloModule jit_f, is_scheduled=true

%fused (p.0: f32[24,8,16], p.1: s32[]) -> f32[8,16] {
  %p.0 = f32[24,8,16]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = f32[1,8,16]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = f32[8,16]{1,0:T(8,128)} bitcast(%slice)
}

%body (c: (s32[], f32[24,8,16], f32[2,16])) -> (s32[], f32[24,8,16], f32[2,16]) {
  %c = (s32[]{:T(128)}, f32[24,8,16]{2,1,0:T(8,128)}, /*index=2*/f32[2,16]{1,0:T(2,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %w = f32[24,8,16]{2,1,0:T(8,128)} get-tuple-element(%c), index=1
  %x = f32[2,16]{1,0:T(2,128)} get-tuple-element(%c), index=2
  %layer = f32[8,16]{1,0:T(8,128)} fusion(%w, %i), kind=kLoop, calls=%fused
  %start = (f32[8,16]{1,0:T(8,128)}, f32[32,16]{1,0:T(8,128)}) all-gather-start(%layer), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %done = f32[32,16]{1,0:T(8,128)} all-gather-done(%start)
  %near = f32[32,16]{1,0:T(8,128)S(1)} copy(%done)
  ROOT %out = (s32[]{:T(128)}, f32[24,8,16]{2,1,0:T(8,128)}, f32[2,16]{1,0:T(2,128)}) tuple(%i, %w, %x)
}

%condition (c.1: (s32[], f32[24,8,16], f32[2,16])) -> pred[] {
  %c.1 = (s32[]{:T(128)}, f32[24,8,16]{2,1,0:T(8,128)}, f32[2,16]{1,0:T(2,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %most = s32[]{:T(128)} constant(24)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %most), direction=LT
}

ENTRY %main (a: (s32[], f32[24,8,16], f32[2,16])) -> (s32[], f32[24,8,16], f32[2,16]) {
  %a = (s32[]{:T(128)}, f32[24,8,16]{2,1,0:T(8,128)}, f32[2,16]{1,0:T(2,128)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, f32[24,8,16]{2,1,0:T(8,128)}, f32[2,16]{1,0:T(2,128)}) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_loop_whose_turns_only_its_condition_tells():
    text = Text.of(TPU)
    gathered, layer = 32 * 16 * 4, 8 * 16 * 4
    assert text.repeats == {"ENTRY": 1, "body": 24}
    found = text.messages()
    assert found.count == {"all-gather": 24} and found.bytes == {"all-gather": 24 * gathered}
    assert found.sent == pytest.approx(24 * gathered * 3 / 4)
    # An iteration reads and writes one layer of the stack, gathers it, and copies the result to on-chip memory.
    index = 4
    assert text.bytes_moved() == 24 * (2 * layer + index + (layer + gathered) + (gathered + gathered))


def test_a_loop_that_ends_by_what_it_computes_runs_as_often_as_it_is_told():
    def until(x, kernel):
        return jax.lax.while_loop(lambda c: (c[1] < 50) & (c[0].sum() < 9), lambda c: (c[0] @ kernel, c[1] + 1), (x, 0))

    text = text_of(until, shape(64, 64), shape(64, 64), turns=11)
    assert 11 in text.repeats.values() and 50 not in text.repeats.values()


def test_what_is_moved_is_what_the_products_read_and_write():
    text = text_of(lambda x, w: x @ w, shape(64, 256), shape(256, 512))
    least = 4 * (64 * 256 + 256 * 512 + 64 * 512)
    assert least <= text.bytes_moved() <= 1.1 * least

    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    # Each iteration reads one layer, not the whole stack.
    each = 4 * (2 * 8 * 256 + 256 * 256)
    assert 16 * each <= text_of(layers, shape(8, 256), shape(16, 256, 256)).bytes_moved() <= 16 * each * 4


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, use", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], use", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), use", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, use", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, use", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, use", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, use", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, use", [[0, 1], [1, 0]]),
    ],
)
def test_who_exchanges_a_message_with_whom(text, groups):
    assert groups_of(text) == groups


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("(bf16[4]{0}, s32[], pred[8]{0:T(128)(2,1)})", 8 + 4 + 8),
        ("f32[8]{0:T(128)S(1)}", 0),  # in on-chip memory
    ],
)
def test_sizes(text, size):
    assert size_of(text) == size
