"""Deliberate one-line defects of the engine and the tests that notice them: `python -m tests.mutations [words]`.

Every defect is planted alone in a temporary copy of the tree, where only its tests run. A table says which one noticed
it; the exit status is 1 if a defect survives. Words choose the defects whose names hold one of them.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Defect(NamedTuple):
    """One wrong line."""

    name: str
    file: str
    old: str  # found exactly once in the file
    new: str
    tests: tuple[str, ...]  # ids of the tests that should notice, below tests/core


DEFECTS = (
    Defect(
        "carry shifted the wrong way",
        "pjax_core/recurrence.py",
        "jnp.concatenate([first[None], steps[:-1]])",
        "jnp.concatenate([first[None], steps[1:]])",
        ("test_recurrence.py::test_scan_is_the_unrolled_network[plain-AP]",),
    ),
    Defect(
        "time that runs backwards forgotten",
        "pjax_core/recurrence.py",
        'if eqn.params["reverse"]:',
        "if False:",
        ("test_recurrence.py::test_scan_is_the_unrolled_network[backwards-AP]",),
    ),
    Defect(
        "sign of a bilinear rule's root",
        "pjax_core/bilinear.py",
        "return scale, root * scale",
        "return scale, -root * scale",
        ("test_architectures.py::test_every_representation_equals_edges[AP-MLP]",),
    ),
    Defect(
        "copies of a dot counted once",
        "pjax_core/bilinear.py",
        "jax.linear_transpose(self._plain, *self._shapes)(coefficient)",
        "jax.linear_transpose(self._plain, *self._shapes)(coefficient / self._node.shape[-1])",
        ("test_bilinear.py::test_sums_over_edges[matrix]",),
    ),
    Defect(
        "ones of a convolution summed over the batch",
        "pjax_core/windows.py",
        "a = jnp.sum(a.transpose(dimension_numbers.lhs_spec), 1, keepdims=True)",
        "a = jnp.sum(a.transpose(dimension_numbers.lhs_spec), 0, keepdims=True)",
        ("test_bilinear.py::test_sums_over_edges[conv]",),
    ),
    Defect(
        "padding of a convolution's transpose",
        "pjax_core/convolution.py",
        "((k - 1 - low, n - m + low),",
        "((k - 1 + low, n - m - low),",
        ("test_convolution.py::test_padding_by_name_and_defaults[SAME]",),
    ),
    Defect(
        "what was written leaves the past of a history",
        "pjax_core/history.py",
        "dataclasses.replace(z, scale=0.0, new=new, origin=None)",
        "dataclasses.replace(z, scale=1.0, new=new, origin=None)",
        ("test_architectures.py::test_every_representation_equals_edges[DR-MLP]",),
    ),
    Defect(
        "sides of Douglas-Rachford swapped",
        "pjax_core/optim.py",
        "problem.graph.sides, self.relaxation)",
        "problem.graph.sides[::-1], self.relaxation)",
        ("test_methods.py::test_edges_are_the_papers_scalar_method[dr-DouglasRachford-False]",),
    ),
    Defect(
        "factor of the relaxation",
        "pjax_core/optim.py",
        "(2 * relaxation, y), (-2 * relaxation, x)",
        "(relaxation, y), (-relaxation, x)",
        ("test_methods.py::test_steps_are_those_of_the_literature",),
    ),
    Defect(
        "share of beta",
        "pjax_core/optim.py",
        "share = 1 / self.beta",
        "share = self.beta",
        ("test_methods.py::test_steps_are_those_of_the_literature",),
    ),
    Defect(
        "last pair of cyclic Douglas-Rachford",
        "pjax_core/optim.py",
        "layers[1:] + layers[:1]",
        "layers[1:] + layers[-1:]",
        ("test_methods.py::test_steps_are_those_of_the_literature",),
    ),
    Defect(
        "weight of the output left out of a sum",
        "pjax_core/projections.py",
        "step = distance / (squares + 1 / weight)",
        "step = distance / (squares + 1)",
        ("test_projections.py::test_definition",),
    ),
    Defect(
        "coefficients of a mean taken for those of a sum",
        "pjax_core/projections.py",
        "squares = fun(*transpose(jnp.ones_like(distance)))",
        "squares = fun(*map(jnp.ones_like, operands))",
        ("test_nonlinear.py::test_a_mean_is_projected_as_in_theorem_5",),
    ),
    Defect(
        "inputs of steps sent where no target is",
        "pjax/rules.py",
        "((u - x) * distance > 0) &",
        "((u - x) * distance < 0) &",
        ("test_displacement.py::test_a_step_moves_as_its_target_asks",),
    ),
    Defect(
        "what a product leaves of a displacement",
        "pjax/displacement.py",
        "scale, (x, w)), root",
        "scale, (x, w)), distance - root",
        ("test_displacement.py::test_a_dots_displacement_is_the_difference_of_projections",),
    ),
    Defect(
        "label mask of the margin",
        "pjax_core/projections.py",
        "jnp.where(labels <= 0, jnp.minimum(x, 0)",
        "jnp.where(labels < 0, jnp.minimum(x, 0)",
        ("test_projections.py::test_margin_is_the_nearest_point_of_its_set",),
    ),
    Defect(
        "maximum raises all equal entries",
        "pjax_core/projections.py",
        "return (inner == first) & (outer == block)",
        "return chosen",
        ("test_projections.py::test_max_moves_one_of_equal_entries_up_and_all_of_them_down",),
    ),
    Defect(
        "midpoints of quantisation go up",
        "pjax_core/projections.py",
        "jnp.ceil((x + scale) / gap - 0.5)",
        "jnp.floor((x + scale) / gap + 0.5)",
        ("test_steps.py::test_quantize_takes_midpoints_down_and_has_no_slope",),
    ),
    Defect(
        "level of the cross-entropy's Newton step",
        "pjax_core/projections.py",
        "jnp.sum(w + share * gap, -1, keepdims=True) - lam",
        "jnp.sum(w - share * gap, -1, keepdims=True) - lam",
        ("test_roots.py::test_exact_prox_solves_equation_49",),
    ),
    Defect(
        "what was reflected taken for its projection",
        "pjax_core/history.py",
        "before: [(1, reflected), (-2, way)]",
        "before: [(1, reflected), (-1, way)]",
        ("test_architectures.py::test_every_representation_equals_edges[DR-CNN]",),
    ),
    Defect(
        "norms of a history's sum and difference exchanged",
        "pjax_core/history.py",
        "return norm(0), norm(1)",
        "return norm(1), norm(0)",
        ("test_architectures.py::test_every_representation_equals_edges[DR-MLP]",),
    ),
    Defect(
        "an inner product of two slots counted once",
        "pjax_core/history.py",
        "total += own + 2 * a[j] * jnp.sum(",
        "total += own + a[j] * jnp.sum(",
        ("test_architectures.py::test_every_representation_equals_edges[DR-MLP]",),
    ),
    Defect(
        "inner products of two of many slots counted once",
        "pjax_core/history.py",
        "np.tri(len(old), dtype=a.dtype) + np.tri(len(old), k=-1, dtype=a.dtype)",
        "np.tri(len(old), dtype=a.dtype)",
        ("test_architectures.py::test_every_representation_equals_edges[DR-MLP]",),
    ),
    Defect(
        "inner products of many slots kept with the slots that are gone",
        "pjax_core/history.py",
        "old = jnp.pad(square[drop:, drop:],",
        "old = jnp.pad(square[drop:, :-drop],",
        ("test_architectures.py::test_every_representation_equals_edges[DR-MLP]",),
    ),
    Defect(
        "a row of inner products that begins a slot too early",
        "pjax_core/history.py",
        "jax.tree.map(lambda a: a[drop:], row)",
        "jax.tree.map(lambda a: a[drop - 1 : -1], row)",
        ("test_history.py::test_short_windows_stay_within_their_bound[sizes1-True-2-0.0001-published]",),
    ),
    Defect(
        "copies of a part summed where they are averaged",
        "pjax_core/copies.py",
        "return {producer: sums / at_least_one(count)}",
        "return {producer: sums}",
        ("test_copies.py::test_parts_are_edges[AP]",),
    ),
    Defect(
        "copies of a part counted as the whole's",
        "pjax_core/copies.py",
        "count = self._held(position, jnp.broadcast_to(count, self.values[producer].shape))",
        "count = jnp.max(count)",
        ("test_copies.py::test_parts_are_edges[AP]",),
    ),
    Defect(
        "what falls out of the window is lost",
        "pjax_core/history.py",
        "sum([*stacked[: len(new) + 1], *new[:spare]][1:], stacked[0])",
        "sum([*new[:spare]], stacked[min(len(new), len(stacked) - 1)])",
        ("test_history.py::test_what_falls_out_of_the_window_goes_to_the_next_oldest_slot",),
    ),
    Defect(
        "copies held whole mistake one operand for the other",
        "pjax_core/whole.py",
        "self.dots.contract(((u + v) / 2, (u - v) / 2))",
        "self.dots.contract(((u - v) / 2, (u + v) / 2))",
        ("test_history.py::test_copies_held_whole_are_edges",),
    ),
    Defect(
        "copies held whole count where nobody reads the output",
        "pjax_core/whole.py",
        "(jax.vmap(self.living, -1, -1)(copies) for copies in self._edges(z))",
        "self._edges(z)",
        ("test_methods.py::test_outputs_that_nobody_reads_change_nothing",),
    ),
    Defect(
        "sums of many copies leave a part out",
        "pjax_core/rules.py",
        "copies = sum(others, first)",
        "copies = sum(others, others[0])",
        ("test_bilinear.py::test_sums_over_edges[many]",),
    ),
    Defect(
        "what slides out of a window stays",
        "pjax_core/history.py",
        "stacked[len(new) :], *(a[None] for a in new[-len(stacked) :])",
        "stacked[: -len(new)], *(a[None] for a in new[-len(stacked) :])",
        ("test_history.py::test_what_falls_out_of_the_window_goes_to_the_next_oldest_slot",),
    ),
    Defect(
        "consumers averaged without their numbers of copies",
        "pjax_core/problem.py",
        "sum(own * share for own, share in",
        "sum(own / len(means) for own, share in",
        ("test_methods.py::test_consensus_over_consumers_differs_only_where_fan_outs_differ",),
    ),
    Defect(
        "means that a producer has read are not replaced by its value",
        "pjax_core/copies.py",
        "values[p]) if p in values else before",
        "values[p]) if False else before",
        ("test_architectures.py::test_every_representation_equals_edges[AP-MLP]",),
    ),
    Defect(
        "outputs that nobody reads are alive",
        "pjax_core/counting.py",
        "jnp.sign(sum(readers, jnp.zeros_like(masks[n])))",
        "jnp.ones_like(masks[n])",
        ("test_methods.py::test_outputs_that_nobody_reads_change_nothing",),
    ),
    Defect(
        "nodes whose copies are all dropped are alive",
        "pjax_core/counting.py",
        "jnp.sign(sum(readers, jnp.zeros_like(masks[n])))",
        "jnp.sign(sum(readers) + (jnp.max(sum(readers)) == 0))",
        ("test_recurrence.py::test_what_only_dropped_copies_read_is_not_in_the_graph",),
    ),
    Defect(
        "an embedding's rows counted as one each",
        "pjax_core/counting.py",
        "later = _counts(graph, masks, indices, lambda operand: operand.indexed)",
        "later = jax.tree.map(lambda _: 1, _counts(graph, masks, indices, lambda operand: operand.indexed))",
        ("test_trace.py::test_copies_are_not_nodes_and_their_means_are_exact",),
    ),
    Defect(
        "an addition that others read is fused",
        "pjax_core/fusion.py",
        "readers[operand.producers[0]] == 1",
        "readers[operand.producers[0]] >= 1",
        ("test_trace.py::test_an_addition_that_others_read_is_not_fused",),
    ),
)


def plant(defect: Defect, tree: Path) -> str:
    """Write the wrong line into a copy of the tree; returns the right text of the file."""
    path = tree / defect.file
    text = path.read_text()
    if text.count(defect.old) != 1:
        raise ValueError(f"{defect.name}: {defect.file} holds {text.count(defect.old)} times, not once: {defect.old}")
    path.write_text(text.replace(defect.old, defect.new))
    return text


def noticed(defect: Defect, tree: Path) -> bool:
    """Run the defect's tests in the copy, until one fails."""
    tests = [f"tests/core/{test}" for test in defect.tests]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "-q",
        "--all",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{defect.name}: its tests did not run\n{done.stdout}{done.stderr}")
    return done.returncode == 1


def run(defects: Iterable[Defect]) -> list[Defect]:
    """Plant each defect, print a line of the table, and return those that survive."""
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("pjax", "pjax_core", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        for defect in defects:
            begin = time.perf_counter()
            right = plant(defect, tree)
            found = noticed(defect, tree)
            (tree / defect.file).write_text(right)
            verdict = f"caught by {defect.tests[0]}" if found else "NOT CAUGHT"
            print(f"{defect.name:50s} {defect.file:25s} {time.perf_counter() - begin:4.0f} s  {verdict}", flush=True)
            survivors += [] if found else [defect]
    return survivors


def main() -> int:
    """Run the chosen defects; 1 if one survives."""
    words = sys.argv[1:]
    chosen = [d for d in DEFECTS if not words or any(word in d.name for word in words)]
    survivors = run(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
