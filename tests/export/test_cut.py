"""Where graphs are cut, and what crosses."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpc import graph_names as names
from llm_grpc.config import EMBEDDED_MODEL
from llm_grpc.errors import ExportError
from llm_grpc.export.passes.cut import _balanced, cut
from llm_grpc.export.passes.reads import reads
from llm_grpc.export.passes.tidy import with_shapes

MOST_CROSSING = 2
"""The sum of what the layers have added, and the norm of it that the next attention reads."""

NUM_LAYERS = 5


def embedded() -> ir.Model:
    return with_shapes(onnx.load(EMBEDDED_MODEL / "model.onnx"))


def inputs(model: ir.Model, prefix: str = "") -> list[str]:
    return [str(value.name) for value in model.graph.inputs if str(value.name).startswith(prefix)]


def outputs(model: ir.Model, prefix: str = "") -> list[str]:
    return [str(value.name) for value in model.graph.outputs if str(value.name).startswith(prefix)]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_two_rows_a_token_cross_and_nothing_is_lost(count: int) -> None:
    whole, parts = embedded(), cut(embedded(), count)
    assert len(parts) == count
    for stage, part in enumerate(parts):
        crossing = [value for value in part.graph.outputs if str(value.name).startswith(names.STAGE_VALUE)]
        assert len(crossing) == (MOST_CROSSING if stage < count - 1 else 0)
        assert all(value.shape == ir.Shape([1, "tokens", 192]) for value in crossing)
        assert outputs(part, names.STAGE_VALUE) == [names.stage_value(stage, n) for n in range(len(crossing))]
        assert part.metadata_props == whole.metadata_props
    for prefix in ("past.", "present.", names.LOGITS):
        found = inputs if prefix == "past." else outputs
        assert [name for part in parts for name in found(part, prefix)] == found(whole, prefix)
    for before, after in pairwise(parts):
        assert inputs(after, names.STAGE_VALUE) == outputs(before, names.STAGE_VALUE)


def test_weights_are_where_they_are_read() -> None:
    """The table of embeddings is what the tied head is; constants and angles are in both."""
    first, second = ({*part.graph.initializers} for part in cut(embedded(), 2))
    assert "model.embed_tokens.weight" in first & second
    assert not [name for name in first & second if name.startswith("model.layers.")]
    assert {*embedded().graph.initializers} == first | second


def test_a_matrix_is_behind_the_norm_that_it_reads() -> None:
    """A stage ends where the next attention's first matrix begins: a sum and its norm are not parted."""
    _, second = cut(embedded(), 2)
    first_layer = min(filter(None, map(names.layer_of, inputs(second, "past."))))
    begins = next(node for node in second.graph if node.op_type == "MatMul")
    assert str(begins.inputs[1].name).startswith(f"model.layers.{first_layer}.self_attn.q_proj")
    assert {str(x.name) for x in begins.inputs if x is not None} & {*inputs(second, names.STAGE_VALUE)}


def test_what_a_graph_in_a_node_reads_is_read_by_the_node() -> None:
    inner = ir.node("Add", [x := ir.Value(name="x"), ir.Value(name="own")])
    branch = ir.Graph([inner.inputs[1]], inner.outputs, nodes=[inner], name="branch")
    choice = ir.node(
        "If", [chosen := ir.Value(name="chosen")], {"then_branch": branch, "else_branch": branch}
    )
    ir.Graph([x, chosen], choice.outputs, nodes=[choice], opset_imports={"": 18})
    assert set(reads(choice)) == {chosen, x}


def test_one_stage_is_the_graph() -> None:
    model = embedded()
    assert cut(model, 1) == [model]


def test_more_stages_than_layers() -> None:
    with pytest.raises(ExportError, match="--stages is 6, and the graph has 5 layers"):
        cut(embedded(), NUM_LAYERS + 1)


def weight(number: int, size: int) -> ir.Value:
    tensor = ir.tensor(np.zeros(size, np.int8))
    return ir.Value(name=f"w{number}", const_value=tensor)


@given(st.data())
def test_the_largest_stage_is_as_small_as_it_can_be(data: st.DataObject) -> None:
    """Compared with all ways to cut; some weights are in several layers."""
    known = [
        weight(number, size)
        for number, size in enumerate(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)))
    ]
    layers = data.draw(st.lists(st.frozensets(st.sampled_from(known)), min_size=2, max_size=7))
    count = data.draw(st.integers(1, len(layers)))

    def largest(cuts: tuple[int, ...]) -> int:
        ends = [0, *cuts, len(layers)]
        parts = [frozenset[ir.Value]().union(*layers[a:b]) for a, b in pairwise(ends)]
        return max(sum(int(value.const_value.nbytes) for value in part) for part in parts)

    found = tuple(index + 1 for index in _balanced(layers, count))
    assert len(found) == count - 1
    assert list(found) == sorted(set(found))
    assert largest(found) == min(largest(cuts) for cuts in combinations(range(1, len(layers)), count - 1))
