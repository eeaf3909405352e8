"""A guess of the patient from the name of a scan."""

from __future__ import annotations

import re

# What follows a patient's name when there are several scans of one patient.
_VISITS = (
    r"visit|vis|session|ses|timepoint|time|tp|scan|series|ser|study|exam|phase|run|acq|"
    r"day|week|month|year|fu|follow[-_ ]?up|baseline|base|bl|before|after|pre|post|"
    r"pre[-_ ]?op|post[-_ ]?op|prior|current|repeat|rescan|retest|copy|"
    r"arterial|portal|portal[-_ ]?venous|venous|delayed|late|early|native|contrast|"
    r"non[-_ ]?contrast"
)
_VIEWS = (
    r"left|right|lh|rh|[lr]|axial|ax|coronal|cor|sagittal|sag|sa|la|ed|es|systole|diastole|"
    r"frame|slice|echo|art|ven|test|ct|cta|cbct|mri?|pet|us|"
    r"t1(?:w|c|ce|gd|n)?|t2(?:w|f|star)?|flair|adc|dwi|swi|dce|pd|pdw|hbv"
)
_DATE = r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?:[-_T]?\d{4,6})?"
_BREAK = r"[-_ .]+"
_NUMBER = r"[-_ .]?\d{0,4}"


def _suffix(*kinds: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{'|'.join(kinds)})$", re.IGNORECASE)


_ANYWHERE = _suffix(
    rf"{_BREAK}(?:(?:{_VISITS}){_NUMBER}|{_VIEWS}|[vt]\d{{1,2}}(?:{_BREAK}\d{{1,4}})?|{_DATE})",
    r"(?<=\d)(?:visit|session|ses|timepoint|tp|scan|series|phase|pre|post|fu|t[12])[-_ .]?\d{0,4}",
    r"(?<=\d)[-_ .]?[a-z]",
    r" ?\(\d+\)",
)
# Without a number before them, these are parts of a data set's name: liver_ct_001, total_s0001.
_AFTER_A_NUMBER = _suffix(
    rf"{_BREAK}(?:(?:{_VIEWS}){_NUMBER}|s\d{{1,2}}|[dmwy]\d+)",
)
# A patient's number, and those of his studies: pat03_1_2, 10000_1000000.
_NUMBERS = re.compile(
    r"(.*?(?<![a-z0-9])(?:p|pt|pat|patient|s|subj?|subject|case|id)\d+)(?:[-_ ]+\d+)+"
    r"|(.*(?<![a-z0-9])\d+)[-_ ]+\d+",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(sub-[a-z0-9]+)(?:_|$)", re.IGNORECASE)  # BIDS
_BARCODE = re.compile(r"(tcga-[a-z0-9]{2}-[a-z0-9]{4})(?:[-_.]|$)", re.IGNORECASE)


def guessed_patient(name: str) -> str:
    """The patient that a scan's name speaks of; in doubt, two scans are of one patient.

    A leak between patients makes scores worthless, and fewer patients do not. So whatever may be a
    visit, session, time, series, phase, side, sequence or date at the end of a name is left out:
    `pat03_visit1`, `pat03-followup`, `pat03_t2`, `pat03_20210315`, `sub-03_ses-01` and `pat03_1`
    (two numbers, of patient and study). A plain number after a word is the patient: `liver_1`,
    `case_0001`.

    Args:
        name: name of the scan, without the ending and without nnU-Net's channel.

    Returns:
        The rest, in lower case; the whole name, where nothing would be left.
    """
    for whole in (_SUBJECT, _BARCODE):
        if found := whole.match(name):
            return found[1].lower()
    rest = name
    while (shorter := _without_suffix(rest)) != rest:
        rest = shorter
    if rest == name and (found := _NUMBERS.fullmatch(rest)):
        rest = found[1] or found[2]
    return (rest.strip("-_ .") or name).lower()


def _without_suffix(name: str) -> str:
    """The name without its last suffix; the name itself, if it has none or is nothing else."""
    found = _ANYWHERE.search(name)
    if found is None:
        found = _AFTER_A_NUMBER.search(name)
        if found is not None and not re.search(r"\d", name[: found.start()]):
            found = None
    return name[: found.start()] if found is not None and found.start() else name


def without_channel(name: str) -> str:
    """The name of an image of nnU-Net without its channel, `_0000`."""
    return name.removesuffix("_0000")
