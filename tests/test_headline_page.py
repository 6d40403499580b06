"""README's headline table has the figures of the JSON."""

from tests import write_headline


def test_the_table_is_that_of_the_json():
    text = write_headline.README.read_text(encoding="utf-8")
    why = "run `python -m tests.write_headline` and commit what it writes"
    assert text == write_headline.make_readme(text), why


def test_a_stale_table_is_noticed():
    text = write_headline.README.read_text(encoding="utf-8")
    changed = text.replace("| reference_10x | ", "| reference_10x | 9", 1)
    assert changed != text, "no row of reference_10x"
    assert write_headline.make_readme(changed) == write_headline.make_readme(text)
