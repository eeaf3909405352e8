"""Tests of the inputs and events that were once wrong, by their number.

Inputs of `tests/bad_inputs` carry the number themselves; the others are named here.
"""

from __future__ import annotations

from tests.bad_inputs import INPUTS

_RUNS, _CHECKPOINTS = "tests/test_runs.py", "tests/training/test_checkpoints.py"
_FAULTS, _BUNDLE = "tests/faults/test_faults.py", "tests/test_bundle.py"
_SEEN, _OUTPUTS = "tests/test_seen.py", "tests/test_cli_outputs.py"
_SPLIT, _FAILURES = "tests/test_cli_split.py", "tests/test_cli_failures.py"
_NAMED: dict[int, tuple[str, tuple[str, ...]]] = {
    75: ("NIfTI in micron or metre", ()),
    76: (
        "label ids above 255 and 65535",
        (
            "tests/slices/test_store.py::test_row_76_label_ids_of_any_size",
            "tests/cases/test_audit.py::test_row_76_ids_are_counted_one_by_one",
        ),
    ),
    77: ("DICOM without PixelSpacing", ()),
    78: (
        "no place in the header",
        ("tests/cases/labels/test_grid.py::test_row_78_a_guessed_place_is_not_resampled",),
    ),
    79: ("MR with negative values", ()),
    80: (
        "CT in another unit than HU",
        ("tests/cases/test_audit.py::test_row_80_folder_whose_json_says_ct",),
    ),
    81: ("MR taken for CT", ()),
    82: (
        "ignore label, regions, double names",
        (
            "tests/training/test_losses.py::test_what_nobody_annotated_has_no_loss",
            "tests/evaluation/test_label_maps.py::test_nothing_is_left_where_nobody_annotated",
        ),
    ),
    83: ("nnU-Net without channel numbers", ()),
    84: ("files of the system among scans", ()),
    85: ("folders named like files, links", ()),
    86: (
        "a label in no case",
        (
            "tests/evaluation/test_cases.py::test_row_86_evaluation_of_nothing_writes_its_files",
            "tests/evaluation/test_cases.py::test_row_86_an_error_ends_the_evaluation_but_not_its_files",
        ),
    ),
    87: ("empty subsets", (f"{_SPLIT}::test_without_validation_or_test_cases",)),
    88: (
        "names with sides",
        (
            "tests/training/test_sides.py::test_row_88_pairs",
            "tests/training/test_sides.py::test_row_88_the_recipe_mirrors_by_the_labels",
        ),
    ),
    89: ("orientations in the seventh decimal", ()),
    90: (
        "SEG of one frame, FRACTIONAL, LABELMAP",
        ("tests/cases/labels/test_seg.py::test_frames_beside_the_voxels",),
    ),
    91: ("every file twice", ()),
    92: ("wrapped checkpoints", ()),
    93: (
        "names with signs, spaces, lines",
        (
            "tests/test_settings.py::test_a_path_comes_back_as_it_was",
            f"{_BUNDLE}::test_a_path_is_never_a_program",
        ),
    ),
    94: (
        "output is input, or there already",
        (
            f"{_RUNS}::test_a_run_is_not_written_over",
            f"{_OUTPUTS}::test_row_94_export_leaves_its_base",
            f"{_OUTPUTS}::test_row_94_predict_leaves_scans_prompts_and_masks",
            f"{_OUTPUTS}::test_row_94_check_and_prompts_write_json_alone",
            "tests/evaluation/test_folder.py::test_other_files_are_not_replaced",
        ),
    ),
    95: (
        "resumed with other data or settings",
        (
            f"{_RUNS}::test_another_training_is_not_a_continuation",
            f"{_SEEN}::test_the_split_is_kept",
            f"{_CHECKPOINTS}::test_a_resumed_schedule_is_that_of_the_settings",
        ),
    ),
    96: (
        "stopped before the first checkpoint",
        (
            f"{_RUNS}::test_a_run_without_a_checkpoint_starts_again",
            f"{_CHECKPOINTS}::test_a_killed_run_goes_on_from_its_last_checkpoint",
            f"{_FAULTS}::test_a_kill_loses_nothing",
        ),
    ),
    97: (
        "datalist changed after the training",
        (f"{_SEEN}::test_what_was_trained_on_is_never_held_out",),
    ),
    98: ("several scans of a patient", (f"{_SPLIT}::test_visits_of_a_patient_stay_together",)),
    99: (
        "prompts that contradict the scan or the run",
        ("tests/inference/test_prompt_files_any.py::test_any_value_at_any_place",),
    ),
    100: (
        "intervals of few cases",
        (
            "tests/evaluation/test_statistics.py::test_row_100_intervals_of_few_cases",
            "tests/evaluation/test_statistics.py::test_row_100_intervals_of_many_cases",
        ),
    ),
    101: (
        "scores by other prompts than the user's",
        (
            "tests/evaluation/test_cases.py::test_row_101_each_kind_of_prompts_has_its_scores",
            "tests/evaluation/test_cases.py::test_row_101_kinds_that_a_model_cannot_do_are_refused",
            "tests/evaluation/test_statistics.py::test_row_101_every_table_names_its_prompts",
            "tests/evaluation/test_pictures.py::test_row_101_each_kind_has_its_column_and_name",
        ),
    ),
    102: (
        "settings out of their range",
        (
            "tests/test_settings.py::test_impossible_values_are_named",
            f"{_BUNDLE}::test_unknown_overrides_are_named_with_the_nearest",
        ),
    ),
    103: (
        "tuned files of strangers",
        ("tests/methods/test_header.py::test_row_103_any_json_gives_a_model_or_one_line",),
    ),
    104: (
        "slice stores of strangers",
        (
            "tests/slices/test_entries.py::test_row_104_what_we_do_not_write_is_made_again",
            "tests/slices/test_entries.py::test_row_104_nothing_is_written_through_links",
        ),
    ),
    105: (
        "two trainings in a folder, torchrun",
        (
            f"{_RUNS}::test_a_second_process_is_refused",
            f"{_BUNDLE}::test_several_processes_are_refused",
            f"{_FAULTS}::test_two_trainings_in_one_folder",
        ),
    ),
    106: (
        "memory, disk, workers, damaged checkpoints",
        (
            f"{_FAILURES}::test_each_kind_is_a_line_and_a_code",
            f"{_CHECKPOINTS}::test_a_damaged_checkpoint_is_named",
            f"{_FAULTS}::test_a_full_disk",
            f"{_FAULTS}::test_little_memory",
            f"{_FAULTS}::test_a_dead_worker",
        ),
    ),
    107: (
        "SIGTERM, SIGINT",
        (
            f"{_CHECKPOINTS}::test_a_run_that_a_signal_stopped_ends_as_one_that_went_on",
            f"{_FAULTS}::test_a_signal_stops_and_says_how_to_go_on",
        ),
    ),
    108: (
        "huge and strange datalists and prompt files",
        (
            "tests/cases/test_datalist_any.py::test_any_content",
            "tests/cases/test_splits.py::test_many_patients_are_split_in_linear_time",
        ),
    ),
    109: (
        "patients' keys that can be guessed",
        (
            "tests/formats/dicom/test_patients.py::test_keys_tell_patients_apart_and_no_more",
            f"{_SPLIT}::test_patients_of_dicom_are_hashed_by_a_key_beside_the_datalist",
        ),
    ),
    110: (
        "labels that reach out of the image",
        ("tests/cases/labels/test_grid.py::test_row_110_a_label_that_reaches_out_of_the_image",),
    ),
    111: ("results that cannot be written as DICOM", ()),
    112: (
        "a bad scan among many",
        (
            "tests/test_cli_predict.py::test_bad_scans_are_refused_alone",
            "tests/test_cli_predict.py::test_memory_refuses_one_scan_and_a_full_disk_stops_all",
            f"{_FAULTS}::test_two_predictions_into_one_folder",
        ),
    ),
}

ROWS: dict[int, tuple[str, tuple[str, ...]]] = {
    row: (
        what,
        (*names, *(f"tests/test_bad_inputs.py[{bad.id}]" for bad in INPUTS if bad.row == row)),
    )
    for row, (what, names) in _NAMED.items()
}
"""Row -> what it is, and the names of its tests, which exist."""
UNTESTED: set[int] = set()
"""Rows that have no test of their own yet."""
