import pytest

from htas import text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (123.4, "123"),
        (1234.4, "1234"),
        (-1.2345, "-1.23"),
        (9.999, "10.0"),
        (0.9999, "1.00"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_three_significant_digits_never_in_exponent_form(value: float, written: str) -> None:
    assert text.significant(value) == written


def test_the_number_of_significant_digits_can_be_chosen() -> None:
    assert text.significant(0.056789, 2) == "0.057"


def test_seconds_are_written_as_milliseconds() -> None:
    assert text.milliseconds(0.00422) == "4.22 ms"


@pytest.mark.parametrize(
    ("value", "spread", "written"),
    [
        (4.2249, 0.081, "4.22 ± 0.08"),
        (4.2249, 0.0042, "4.225 ± 0.004"),
        (4.2249, 0.000001, "4.2249 ± 0.0001"),
        (4.2249, 0, "4.22 ± 0.00"),
        (123.4, 20.2, "123 ± 20"),
    ],
)
def test_a_spread_is_written_to_its_first_digit(value: float, spread: float, written: str) -> None:
    assert text.plus_minus(value, spread) == written


def test_counts_are_written_in_millions() -> None:
    assert text.millions(40813184) == "40.81 M"
    assert text.millions(1_000_000) == "1.00 M"


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (999_999, "1.00 M"),
        (272_474, "0.272 M"),
        (14_378, "0.0144 M"),
        (4306, "0.00431 M"),
        (10, "0.0000100 M"),
        (0, "0 M"),
    ],
)
def test_counts_below_a_million_keep_three_digits(count: int, written: str) -> None:
    assert text.millions(count) == written


def test_shares_are_written_in_percent() -> None:
    assert text.percent(0.9316) == "93.16 %"
    assert text.percent(0.5, 0) == "50 %"


def test_differences_of_shares_are_points() -> None:
    assert text.points(0.0031) == "0.31 points"


def test_signs_are_typographic_and_zero_has_none() -> None:
    assert text.signed(0.314) == "+0.31"
    assert text.signed(-0.314) == "\N{MINUS SIGN}0.31"
    assert text.signed(-0.001) == "0.00"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.4, "0 s"),
        (12.2, "12 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, written: str) -> None:
    assert text.duration(seconds) == written


def test_a_fit_is_written_in_milliseconds() -> None:
    assert text.fitted(0.0000123, 0.91, 0.000456) == "f(x) = 0.0123 x^0.910 + 0.456 ms"
    assert text.fitted(0.001, 1, -0.002) == "f(x) = 1.00 x^1.00 \N{MINUS SIGN} 2.00 ms"


def test_one_has_no_plural() -> None:
    assert [text.plural(count, "group") for count in (0, 1, 2)] == ["0 groups", "1 group", "2 groups"]


def test_equal_neighbours_are_written_once_with_their_count() -> None:
    assert text.runs([16, 16, 8, 16]) == "2x16 8 16"
    assert text.runs([]) == ""


def test_names_are_listed_in_the_order_given() -> None:
    assert text.listing(name for name in ("b", "a")) == "b, a"


def test_a_wrong_name_hears_of_the_nearest_and_of_all() -> None:
    said = text.no_such("runtime", "onxruntime", ["eager", "onnxruntime"])
    assert said == "no runtime called 'onxruntime'; did you mean 'onnxruntime'? choose one of eager, onnxruntime"


def test_a_name_like_no_other_gets_no_guess() -> None:
    assert text.no_such("runtime", "zzz", ["eager"]) == "no runtime called 'zzz'; choose one of eager"


@pytest.mark.parametrize(
    "value, unit, words",
    [(0.00422, "s", "4.22 ms"), (0.5, "J", "500 mJ"), (1234567, "bytes", "1.23 MB"), (3.0, "shots", "3.00 shots")],
)
def test_a_quantity_is_written_in_the_unit_people_use(value: float, unit: str, words: str) -> None:
    assert text.quantity(value, unit) == words


def test_a_long_value_is_quoted_without_its_middle() -> None:
    assert text.shortened("x" * 160) == "x" * 160
    words = text.shortened("a" * 200 + "b" * 200)
    assert len(words) <= 160 and words.startswith("aaa") and words.endswith("bbb (400 letters)") and " ... " in words
    assert text.quoted("a\x1bb") == r"'a\x1bb'" and text.quoted(3) == "3"
    assert text.quoted(10**5000) == "a value of type int that is too long to print"


def test_what_a_terminal_obeys_is_printed_as_escapes() -> None:
    assert (
        text.printable("a\x1b[31m\tb\n\x07\u202e\udcff\x85\u00a0é") == "a\\x1b[31m\tb\n\\x07\\u202e\\udcff\\x85\u00a0é"
    )


def test_a_sentence_is_one_line_of_a_length_that_people_read() -> None:
    assert text.sentence(" one\n two\x1b ") == "one two\\x1b"
    for words in ("x" * 5000, "x " * 5000, "\x1b" * 5000, "\x1b " * 5000):
        assert len(text.sentence(words)) <= 1000 and text.sentence(words).isprintable()
