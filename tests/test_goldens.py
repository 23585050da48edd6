"""Every golden case is compared somewhere, or is on the list of what segcredit leaves out."""

from __future__ import annotations

from collections import Counter

import test_goldens_advantages as _advantages  # noqa: F401
import test_goldens_corrections as _corrections  # noqa: F401
import test_goldens_sapo as _sapo  # noqa: F401
import test_goldens_surrogates as _surrogates  # noqa: F401
import test_goldens_treetune as _treetune  # noqa: F401
import test_goldens_trl as _trl  # noqa: F401
import test_goldens_turns as _turns  # noqa: F401
import test_goldens_verl as _verl  # noqa: F401
from golden_cases import CASES, GOLDENS, Case, excluded, missing, taken


def test_every_case_is_covered_or_left_out_with_a_reason() -> None:
    """The seven files that parametrise over cases say which they take; ``-s`` shows the table."""
    covered = Counter(case.family for case in CASES if case.name in taken)
    left_out = Counter(case.family for case in CASES if excluded(case))
    print(f"\n{GOLDENS}\n{'family':24}{'covered':>8}{'left out':>9}")
    for family in sorted(covered | left_out):
        print(f"{family:24}{covered[family]:8}{left_out[family]:9}")
    assert missing(CASES) == []


def test_a_family_that_nobody_knows_would_be_missed() -> None:
    unknown = Case("verl_tomorrow_000", {}, frozenset())
    assert missing([*CASES, unknown]) == ["verl_tomorrow_000"]
