"""The tables of a run folder: whole rows, whatever a killed process left."""

from stnet.training.run_folder import RunFolder

ROWS = [{"step": step, "epoch": 1, "loss": 0.5 ** (step - 8)} for step in (9, 10, 11)]


def written(folder, rows):
    run = RunFolder(folder)
    for row in rows:
        run.append(run.steps_file, row)
    return run, run.steps_file.read_bytes()


def test_a_row_that_is_not_whole_is_forgotten_wherever_it_ends(tmp_path):
    _, two = written(tmp_path, ROWS[:2])
    run, three = written(tmp_path, ROWS[2:])
    for end in range(len(two) - 1):
        run.steps_file.write_bytes(three[:end])
        run.forget_after(10)
        whole = max(0, three[:end].count(b"\n") - 1)
        assert run.rows(run.steps_file) == ROWS[:whole]
        run.append(run.steps_file, ROWS[1])
        assert run.rows(run.steps_file) == [*ROWS[:whole], ROWS[1]]
    for end in range(len(two), len(three)):
        run.steps_file.write_bytes(three[:end])
        run.forget_after(11)
        assert run.rows(run.steps_file) == ROWS[:2]


def test_rows_after_a_step_are_forgotten(tmp_path):
    run, _ = written(tmp_path, ROWS)
    run.forget_after(9)
    assert run.rows(run.steps_file) == ROWS[:1]
    run.append(run.steps_file, {"step": 10, "epoch": 1, "loss": None})
    assert run.rows(run.steps_file) == [ROWS[0], {"step": 10, "epoch": 1}]
