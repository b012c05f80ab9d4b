from shim.cli.table import shortened, table

COLUMNS = (("NAME", 10), ("SIZE", -8), ("STATE", 70))


def test_columns_stand_below_each_other_and_no_line_is_too_long() -> None:
    text = table(COLUMNS, [("a", 5, "x" * 100), ("b" * 30, 123456, "")])
    head, first, second = text.splitlines()
    assert head == "NAME         SIZE STATE"
    assert first.startswith("a               5 x") and len(first) <= 80
    assert second == "bbbbb…bbb  123456"


def test_a_name_is_cut_in_its_middle_and_cannot_move_the_cursor() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcdef…ijk"
    assert shortened("a\x1b[2J\nb", 10) == "a?[2J?b"
