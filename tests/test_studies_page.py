"""The page of studies has the tables of the JSON beside it."""

from tests import write_studies


def test_the_tables_are_those_of_the_json():
    page = write_studies.PAGE.read_text(encoding="utf-8")
    why = "run `python -m tests.write_studies` and commit what it writes"
    assert page == write_studies.make_page(page), why


def test_a_stale_table_is_noticed():
    page = write_studies.PAGE.read_text(encoding="utf-8")
    changed = page.replace("| 5 steps | ", "| 5 steps | 9", 1)
    assert changed != page, "no row of 5 steps"
    assert write_studies.make_page(changed) == write_studies.make_page(page)
