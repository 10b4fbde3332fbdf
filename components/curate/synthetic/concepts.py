"""The concepts that code documents are about: for each a function with open names, ways to describe it, and another way to its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise
from random import Random
from typing import Any

from components.curate.synthetic.cases import (
    Arguments,
    Graph,
    balanced,
    binomial,
    flat,
    grid,
    layers,
    list_and_ranges,
    mirrored,
    nested,
    numbers,
    word,
)


@dataclass(frozen=True)
class Concept:
    """A function to write, with the names in it left open.

    Args:
        topic: the idea.
        functions: names it may have, separated by blanks.
        names: placeholder -> names it may have, separated by blanks; `$f` is the function.
        tasks: ways to say what it does, after "Write a function `f(...)` that".
        notes: ways to explain why it works.
        code: the function.
        draw: arguments of a call.
        expected: the value of that call, found in another way.
        constants: (placeholder, draw): numbers fixed in the code; `expected` gets their values after the arguments.
    """

    topic: str
    functions: str
    names: dict[str, str]
    tasks: tuple[str, ...]
    notes: tuple[str, ...]
    code: str
    draw: Callable[[Random], Arguments]
    expected: Callable[..., Any]
    constants: tuple[tuple[str, Callable[[Random], int]], ...] = ()


_ITEMS = "numbers values items entries readings amounts scores data"
_RESULT = "result found answer collected output kept"
_TOTAL = "total running_sum amount acc tally"

CONCEPTS: tuple[Concept, ...] = (
    Concept(
        "recursion", "nested_sum deep_total sum_nested add_up_all total_of_tree",
        {"xs": "tree nested parts node box", "x": "part child element item", "t": _TOTAL},
        ("adds up all numbers in a list that may hold lists, to any depth, and multiplies the sum by $k",
         "returns $k times the sum of the numbers in a nested list",
         "sums a nested list of numbers and scales the sum by $k"),
        ("A list inside the list is the same problem again, only smaller, so the function calls itself for it.",
         "The recursion ends at plain numbers, which are added as they are; a list is handed to the same function."),
        """
def $f($xs):
    $t = 0
    for $x in $xs:
        if isinstance($x, list):
            $t += $f($x)
        else:
            $t += $k * $x
    return $t
""",
        lambda random: (nested(random),),
        lambda xs, k: k * sum(flat(xs)),
        (("k", lambda random: random.randint(2, 40)),)),
    Concept(
        "two pointers", "has_pair_with_sum pair_sums_to two_sum_sorted can_make_sum pair_exists",
        {"xs": "numbers values ordered prices weights", "t": "target goal wanted limit", "i": "left low first start",
         "j": "right high last end", "s": "pair both together current"},
        ("tells whether two different entries of a sorted list add up to a target",
         "checks if a sorted list holds two elements at different places with the given sum",
         "returns True exactly if some two entries of an ascending list have a given sum"),
        ("One pointer starts at each end. If the sum is too small only a larger left element can help, if it is too large only a smaller "
         "right one.",
         "Because the list is sorted, every step rules out one element for good, so a single pass is enough."),
        """
def $f($xs, $t):
    $i, $j = 0, len($xs) - 1
    while $i < $j:
        $s = $xs[$i] + $xs[$j]
        if $s == $t:
            return True
        if $s < $t:
            $i += 1
        else:
            $j -= 1
    return False
""",
        lambda random: (sorted(numbers(random, 1, 30)), random.randint(8, 45)),
        lambda xs, t: any(a + b == t for a, b in combinations(xs, 2))),
    Concept(
        "palindrome", "is_palindrome reads_both_ways mirrors_itself same_backwards is_symmetric",
        {"s": "text word phrase line title", "i": "left low front start", "j": "right high back end"},
        ("tells whether a string reads the same from both ends, up to $k mismatched pairs",
         "checks if a word is a palindrome when at most $k pairs of letters may differ",
         "returns whether comparing a text with its mirror image finds no more than $k differing pairs"),
        ("Two indices walk towards each other; every pair of letters is looked at once, and the middle letter needs no partner.",
         "Comparing the first with the last, the second with the last but one, and so on, takes half as many steps as there are letters."),
        """
def $f($s):
    $i, $j = 0, len($s) - 1
    misses = 0
    while $i < $j:
        misses += $s[$i] != $s[$j]
        $i += 1
        $j -= 1
    return misses <= $k
""",
        lambda random: (mirrored(random),),
        lambda s, k: sum(a != b for a, b in zip(s, s[::-1])) // 2 <= k,
        (("k", lambda random: random.randint(0, 2)),)),
    Concept(
        "binary search", "first_at_least lower_bound insertion_point leftmost_place find_slot",
        {"xs": "values ordered levels marks stamps", "v": "wanted limit bound value key", "i": "low left begin start",
         "j": "high right stop end", "m": "middle centre mid half"},
        ("returns the index of the first entry of a sorted list that is not smaller than a value",
         "finds where in an ascending list a value would have to be inserted, before equal ones",
         "counts the entries of a sorted list that are smaller than a value, without looking at all of them"),
        ("The answer always lies between the two bounds, and each comparison with the middle halves what is between them.",
         "The invariant is that everything left of the lower bound is smaller, and nothing from the upper bound on is."),
        """
def $f($xs, $v):
    $i, $j = 0, len($xs)
    while $i < $j:
        $m = ($i + $j) // 2
        if $xs[$m] < $v:
            $i = $m + 1
        else:
            $j = $m
    return $i
""",
        lambda random: (sorted(numbers(random, 0, 40)), random.randint(0, 40)),
        lambda xs, v: sum(x < v for x in xs)),
    Concept(
        "hash map", "first_repeated earliest_repeat first_duplicate seen_before repeated_value",
        {"xs": _ITEMS, "x": "entry value current each", "d": "counts seen times tally"},
        ("returns the first entry of a list that has then occurred $k times, or None",
         "finds the value that is the first to reach $k occurrences, and None if there is none",
         "walks through a list and returns the entry whose count reaches $k first, None without one"),
        ("A dictionary remembers how often each value was seen, so that one look-up per entry suffices.",
         "Counting in a dictionary takes constant time per entry, where comparing all pairs would take quadratic time in all."),
        """
def $f($xs):
    $d = dict()
    for $x in $xs:
        $d[$x] = $d.get($x, 0) + 1
        if $d[$x] == $k:
            return $x
    return None
""",
        lambda random: (numbers(random, 1, 5, 4, 9),),
        lambda xs, k: next((x for i, x in enumerate(xs) if xs[:i + 1].count(x) == k), None),
        (("k", lambda random: random.randint(2, 4)),)),
    Concept(
        "string building", "run_lengths compress squeeze encode_runs shorten",
        {"s": "text word line letters message", "r": _RESULT, "i": "start begin place here", "j": "stop end after next_start"},
        ("writes each run of equal letters as the letter and the length of the run",
         "compresses a string by run-length encoding, the count after the letter",
         "turns repeated neighbouring letters into one letter followed by how many there were"),
        ("The inner loop finds where a run ends; the pieces are collected in a list and joined once, since joining is cheaper than "
         "growing a string.",
         "Strings cannot be changed in place, so parts go into a list first and are put together at the end."),
        """
def $f($s):
    $r = []
    $i = 0
    while $i < len($s):
        $j = $i
        while $j < len($s) and $s[$j] == $s[$i]:
            $j += 1
        $r.append($s[$i] + str($j - $i))
        $i = $j
    return "".join($r)
""",
        lambda random: (word(random, 3, 9, "aab"),),
        lambda s: "".join(letter + str(len(list(run))) for letter, run in groupby(s))),
    Concept(
        "cipher", "shift_letters rotate_text caesar encode_word move_letters",
        {"s": "text word message line phrase", "r": _RESULT, "c": "letter sign character symbol", "n": "place code position number"},
        ("moves every small letter $k places on in the alphabet, from the end back to the start, and leaves other characters alone",
         "encodes a message with a Caesar cipher of shift $k that touches small letters only"),
        ("A letter becomes a number from 0 to 25, the shift is added, and the remainder after division by 26 brings it back into the "
         "alphabet.",
         "The remainder makes the alphabet a circle, so that what runs past the last letter starts again at the first."),
        """
def $f($s):
    $r = ""
    for $c in $s:
        if "a" <= $c <= "z":
            $n = (ord($c) - ord("a") + $k) % 26
            $r += chr(ord("a") + $n)
        else:
            $r += $c
    return $r
""",
        lambda random: (word(random) + random.choice(("", " ", "-", "!")) + word(random, 0, 4),),
        lambda s, k: s.translate({97 + i: 97 + (i + k) % 26 for i in range(26)}),
        (("k", lambda random: random.randint(1, 25)),)),
    Concept(
        "sliding window", "best_window max_window_sum largest_stretch peak_total busiest_stretch",
        {"xs": "counts readings sales visits numbers values", "w": "window current inside total", "b": "best largest peak top",
         "i": "index place day here"},
        ("returns the largest sum of $k neighbouring entries of a list, which has at least that many",
         "finds the best total over $k consecutive entries",
         "slides a window of width $k over a list and returns the largest sum in it"),
        ("When the window moves on by one, only one entry enters and one leaves, so the sum is corrected and not computed again.",
         "Each entry is added once and taken away once; the width of the window does not matter for the effort."),
        """
def $f($xs):
    $w = sum($xs[:$k])
    $b = $w
    for $i in range($k, len($xs)):
        $w += $xs[$i] - $xs[$i - $k]
        $b = max($b, $w)
    return $b
""",
        lambda random: (numbers(random, 0, 30, 5, 9),),
        lambda xs, k: max(sum(xs[i:i + k]) for i in range(len(xs) - k + 1)),
        (("k", lambda random: random.randint(2, 5)),)),
    Concept(
        "prefix sums", "range_totals answer_queries sums_between section_sums totals_of_ranges",
        {"xs": _ITEMS, "q": "queries ranges requests spans", "p": "prefix sums before upto", "r": _RESULT, "a": "start begin lo frm",
         "b": "stop end hi until", "x": "value entry x item"},
        ("returns, for each pair of a start and a stop, the sum of the entries from start up to but not including stop",
         "answers many questions for sums of sections of a list after one pass over it"),
        ("The sum of a section is the difference of two prefix sums, so each question costs one subtraction.",
         "All sums from the beginning are computed once; what lies before the start is then taken away."),
        """
def $f($xs, $q):
    $p = [0]
    for $x in $xs:
        $p.append($p[-1] + $x)
    $r = []
    for $a, $b in $q:
        $r.append($p[$b] - $p[$a])
    return $r
""",
        list_and_ranges,
        lambda xs, q: [sum(xs[a:b]) for a, b in q]),
    Concept(
        "stack", "is_balanced brackets_match well_nested check_brackets closes_properly",
        {"s": "text line formula source string", "st": "stack opened pending waiting", "c": "sign character token mark"},
        ("tells whether round and square brackets in a string are properly nested",
         "checks that every bracket is closed by the right one and in the right order"),
        ("A closing bracket must match the one opened last, which is what lies on top of the stack.",
         "Last in, first out: the bracket that was opened most recently has to be closed first."),
        """
def $f($s):
    $st = []
    for $c in $s:
        if $c in "([":
            $st.append($c)
        elif $c in ")]":
            if not $st or $st.pop() + $c not in ("()", "[]"):
                return False
    return not $st
""",
        lambda random: ("".join(random.choice(("()", "[]", "([])", "[()]", "(", "]", "()[]")) for _ in range(random.randint(1, 4))),),
        balanced),
    Concept(
        "dynamic programming", "ways_up count_climbs step_patterns stair_ways climb_count",
        {"n": "stairs height steps rungs", "w": "ways table counts known", "i": "stair here level rung", "t": _TOTAL},
        ("counts the ways to climb stairs when each move takes one step or $k steps",
         "returns in how many orders moves of 1 and of $k add up to a given height"),
        ("The last move came from one step or from $k steps below, so the counts of those two places are added.",
         "Each count is computed once from smaller ones and kept in a table, where plain recursion would repeat the work."),
        """
def $f($n):
    $w = [1]
    for $i in range(1, $n + 1):
        $t = $w[$i - 1]
        if $i >= $k:
            $t += $w[$i - $k]
        $w.append($t)
    return $w[$n]
""",
        lambda random: (random.randint(1, 18),),
        lambda n, k: sum(binomial(n - j * k + j, j) for j in range(n // k + 1)),
        (("k", lambda random: random.randint(2, 5)),)),
    Concept(
        "greedy choice", "most_meetings max_bookings plan_day pick_intervals schedule",
        {"xs": "meetings bookings slots jobs intervals", "n": "count taken chosen number", "e": "free_from last_end busy_until ready",
         "a": "begin start opens frm", "b": "finish end closes until"},
        ("returns the largest number of intervals that do not overlap, given as pairs of begin and end; touching ends are allowed",
         "finds how many meetings at most can be held in one room"),
        ("Among the intervals that fit, the one that ends first leaves the most room, so taking it is never wrong.",
         "Sorting by the end makes the greedy choice safe: any other choice could be exchanged for this one."),
        """
def $f($xs):
    $n, $e = 0, 0
    for $a, $b in sorted($xs, key=lambda pair: pair[1]):
        if $a >= $e:
            $n += 1
            $e = $b
    return $n
""",
        lambda random: ([(start, start + random.randint(1, 6)) for start in numbers(random, 0, 15, 2, 5)],),
        lambda xs: max(size for size in range(len(xs) + 1) for chosen in combinations(sorted(xs), size)
                       if all(a[1] <= b[0] for a, b in pairwise(chosen)))),
    Concept(
        "bit operations", "count_ones set_bits bits_on ones_in popcount",
        {"n": "number value mask flags word", "c": "count ones total found"},
        ("counts the ones in the binary form of a whole number and adds $k for each",
         "returns $k times the number of set bits of a non-negative integer"),
        ("Taking away one and combining with the old value by a bitwise and clears the lowest one, so the loop runs once per one.",
         "Subtracting one turns the lowest set bit off and those below it on; the bitwise and keeps only what both have."),
        """
def $f($n):
    $c = 0
    while $n:
        $n &= $n - 1
        $c += $k
    return $c
""",
        lambda random: (random.randint(0, 999),),
        lambda n, k: k * bin(n).count("1"),
        (("k", lambda random: random.randint(2, 30)),)),
    Concept(
        "generators", "in_chunks batches pieces split_up portions",
        {"xs": _ITEMS, "i": "start begin offset place"},
        ("yields a list in pieces of $k entries, the last of which may be shorter",
         "cuts a list into consecutive parts of length $k, lazily"),
        ("A generator hands out one piece at a time, and nothing is copied that nobody asks for.",
         "With yield the function pauses after each part and goes on where it stopped."),
        """
def $f($xs):
    for $i in range(0, len($xs), $k):
        yield $xs[$i:$i + $k]
""",
        lambda random: (numbers(random, 0, 20, 4, 9),),
        lambda xs, k: [[xs[i] for i in range(len(xs)) if i // k == part] for part in range((len(xs) + k - 1) // k)],
        (("k", lambda random: random.randint(2, 5)),)),
    Concept(
        "sets", "common_values shared_by_all in_every_list overlap present_in_all",
        {"xs": "lists groups baskets rows", "r": _RESULT, "x": "group basket row other"},
        ("returns, sorted, the values that occur in every one of several lists",
         "finds what all the given lists have in common, in ascending order"),
        ("Sets forget order and repetition, and the intersection of two sets keeps what is in both.",
         "The first list gives the candidates; each further list can only remove some."),
        """
def $f($xs):
    $r = set($xs[0])
    for $x in $xs[1:]:
        $r &= set($x)
    return sorted($r)
""",
        lambda random: ([numbers(random, 1, 8, 4, 7) for _ in range(random.randint(2, 3))],),
        lambda xs: [n for n in range(-9, 40) if all(n in x for x in xs)]),
    Concept(
        "matrix", "rotate_grid turn_clockwise quarter_turn rotated spin_board",
        {"g": "grid board matrix image table", "r": "turned rotated output result", "c": "column col j x", "w": "row line i y"},
        ("turns a grid, given as a list of rows, by a quarter clockwise",
         "returns the rows of a board after rotating it 90 degrees to the right"),
        ("What was a column, read from the bottom to the top, is a row afterwards.",
         "The first new row is the first old column, taken from its lower end."),
        """
def $f($g):
    $r = []
    for $c in range(len($g[0])):
        $r.append([$w[$c] for $w in reversed($g)])
    return $r
""",
        grid,
        lambda g: [list(column) for column in zip(*g[::-1])]),
    Concept(
        "breadth-first search", "fewest_hops steps_between distance_in_graph hops shortest_links",
        {"g": "links neighbours graph roads", "a": "source start origin home", "b": "goal target destination finish",
         "q": "queue waiting frontier todo", "d": "distance steps reached known", "n": "node here current stop",
         "m": "other neighbour following nxt"},
        ("returns the fewest links that lead from one node to another, or -1, where the graph maps a node to its neighbours",
         "finds the number of steps on a shortest route in a directed graph, -1 if there is no route"),
        ("The queue hands out nodes in the order of their distance, so the first time a node is reached is the shortest way to it.",
         "Nodes one link away are looked at before those two links away, and no node enters the queue twice."),
        """
def $f($g, $a, $b):
    $d = dict([($a, 0)])
    $q = [$a]
    for $n in $q:
        if $n == $b:
            return $d[$n]
        for $m in $g.get($n, []):
            if $m not in $d:
                $d[$m] = $d[$n] + 1
                $q.append($m)
    return -1
""",
        lambda random: ((lambda n: (Graph((node, random.sample(range(n), random.randint(1, 2))) for node in range(n)),
                                    *random.sample(range(n), 2)))(random.randint(3, 5))),
        lambda g, a, b: next((step for step, nodes in enumerate(layers(g, a)) if b in nodes), -1)),
    Concept(
        "sorting with a key", "by_last_digit order_items arranged sort_records ranked",
        {"xs": _ITEMS, "x": "entry value number item", "a": "key rank order_of measure"},
        ("sorts whole numbers by their remainder after division by $k, and equal remainders by size, largest first",
         "orders a list by the remainder modulo $k and, within a remainder, in descending order"),
        ("A tuple as the key compares its first part first; the minus sign turns the order of the second part around.",
         "Sorting by a pair sorts by its first member and settles ties by the second."),
        """
def $f($xs):
    def $a($x):
        return ($x % $k, -$x)
    return sorted($xs, key=$a)
""",
        lambda random: (numbers(random, 0, 60, 4, 8),),
        lambda xs, k: [x for rest in range(k) for x in sorted(xs, reverse=True) if x % k == rest],
        (("k", lambda random: random.randint(3, 12)),)),
    Concept(
        "number theory", "divisor_count count_divisors how_many_divide factors_of tally_divisors",
        {"n": "number value whole amount", "c": "count found total tally", "d": "divisor candidate small trial"},
        ("counts the divisors of a positive whole number that are not larger than $k",
         "returns how many of the numbers from 1 to $k divide a number without remainder"),
        ("Divisors come in pairs whose product is the number, so it is enough to try up to the square root and look at both of a pair.",
         "For each small divisor the quotient is a divisor too; only at the square root do the two coincide."),
        """
def $f($n):
    $c, $d = 0, 1
    while $d * $d <= $n:
        if $n % $d == 0:
            $c += $d <= $k
            if $d * $d != $n:
                $c += $n // $d <= $k
        $d += 1
    return $c
""",
        lambda random: (random.randint(6, 400),),
        lambda n, k: sum(n % d == 0 for d in range(1, k + 1)),
        (("k", lambda random: random.randint(5, 60)),)),
    Concept(
        "closures", "make_counter ticker stepper numbering every_nth",
        {"s": "state value position now", "g": "advance step proceed count"},
        ("takes how often to count and returns the values that a counter with step $k shows, starting at 0",
         "builds a counter from an inner function that adds $k at each call, and returns what it showed"),
        ("The inner function keeps a variable of the outer one alive and changes it through nonlocal.",
         "A closure carries its state along without a class: the variable belongs to the outer call."),
        """
def $f(times):
    $s = 0

    def $g():
        nonlocal $s
        $s += $k
        return $s

    return [0] + [$g() for _ in range(times)]
""",
        lambda random: (random.randint(1, 7),),
        lambda times, k: list(range(0, k * times + 1, k)),
        (("k", lambda random: random.randint(2, 60)),)),
)
