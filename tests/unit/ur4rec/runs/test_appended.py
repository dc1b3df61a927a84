"""Logs that are appended to: a crash leaves rows that no checkpoint stands for, and resuming cuts them off."""

from functools import partial

import pytest

from alternator.recordings.log import StepRecord, read_log, write_log
from ur4rec.errors import DataError
from ur4rec.runs.directory import AppendedLog

RECORDS = [StepRecord(step, "joint", "a", "b", "steady", 0.5, 1.0, {"a": 1 / step}) for step in range(1, 7)]


def log_at(path, records=()):
    log = AppendedLog(path, partial(write_log, modules=("a", "b")), read_log)
    log.records += records
    return log


def test_it_is_written_in_parts_as_in_one(tmp_path):
    whole, parts = log_at(tmp_path / "whole.csv", RECORDS), log_at(tmp_path / "parts.csv")
    whole.write()
    for record in RECORDS:
        parts.records.append(record)
        parts.write()
    assert parts.path.read_text() == whole.path.read_text() == write_log(RECORDS, ("a", "b"))
    assert parts.state_dict() == whole.state_dict()


def test_resuming_cuts_off_what_no_checkpoint_stands_for(tmp_path):
    log = log_at(tmp_path / "log.csv", RECORDS[:2])
    log.write()
    state = log.state_dict()
    log.records += RECORDS[2:4]
    log.write()
    with log.path.open("a") as file:
        file.write("7,joi")
    resumed = log_at(log.path)
    resumed.load_state_dict(state)
    assert resumed.records == RECORDS[:2]
    resumed.records.append(RECORDS[5])
    resumed.write()
    assert log.path.read_text() == write_log([*RECORDS[:2], RECORDS[5]], ("a", "b"))


def test_without_records_there_is_no_file(tmp_path):
    log = log_at(tmp_path / "log.csv")
    log.write()
    assert not log.path.exists()
    log_at(log.path).load_state_dict(log.state_dict())
    log.path.write_text("left by a run that was killed before its first checkpoint")
    log.write()
    assert log.path.read_text() == write_log([], ("a", "b"))


def test_a_log_that_is_not_the_checkpoints_is_refused(tmp_path):
    log = log_at(tmp_path / "log.csv", RECORDS)
    log.write()
    state, content = log.state_dict(), log.path.read_text()
    for damaged in (content.replace("steady", "steedy", 1), "\n".join(content.splitlines()[:3])):
        log.path.write_text(damaged)
        with pytest.raises(DataError, match="must hold the 6 rows that were saved, it is damaged"):
            log_at(log.path).load_state_dict(state)
    log.path.unlink()
    with pytest.raises(DataError, match="must be a log of the run, it cannot be read"):
        log_at(log.path).load_state_dict(state)
