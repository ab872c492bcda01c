"""The suite notices deliberate defects."""

import pytest

from tests import mutations


def test_every_defect_fits_the_code(tmp_path):
    """Its line is there once, the new one differs, and its tests exist."""
    assert len({d.name for d in mutations.DEFECTS}) == len(mutations.DEFECTS) >= 12
    for file in {d.file for d in mutations.DEFECTS}:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((mutations.ROOT / file).read_text())
    for defect in mutations.DEFECTS:
        right = mutations.plant(defect, tmp_path)
        wrong = tmp_path / defect.file
        assert wrong.read_text() != right
        compile(wrong.read_text(), defect.file, "exec")
        wrong.write_text(right)
        for test in defect.tests:
            file, function, *_ = test.partition("[")[0].split("::")
            assert f"def {function}(" in (mutations.ROOT / "tests" / "core" / file).read_text()


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("defect", mutations.DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_is_caught(defect):
    assert mutations.run([defect]) == []


def test_a_defect_that_no_test_sees_survives(capsys):
    harmless = mutations.Defect(
        "a comment",
        "pjax_core/bilinear.py",
        "return scale, root * scale",
        "return scale, scale * root",
        ("test_bilinear.py::test_sums_over_edges[matrix]",),
    )
    assert mutations.run([harmless]) == [harmless]
    assert "NOT CAUGHT" in capsys.readouterr().out


def test_a_line_that_is_gone_is_an_error(tmp_path):
    changed = tmp_path / mutations.DEFECTS[0].file
    changed.parent.mkdir()
    changed.write_text("changed")
    with pytest.raises(ValueError, match="holds 0 times, not once"):
        mutations.plant(mutations.DEFECTS[0], tmp_path)
