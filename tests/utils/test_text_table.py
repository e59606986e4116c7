from mdl_physpre.utils.text_table import aligned, shown, text_table


def test_words_stand_left_and_numbers_right():
    rows = [["", "energy"], ["silica", "1.5"]]
    assert aligned(rows) == ["        energy", "silica     1.5"]
    assert text_table(rows, words=2).splitlines() == ["        energy", "------  ------", "silica  1.5"]
    assert aligned([]) == []


def test_what_is_not_a_number_is_said():
    assert [shown(v, "{:.1f}") for v in (None, float("nan"), float("inf"), 2.0)] == ["–", "NaN", "inf", "2.0"]
