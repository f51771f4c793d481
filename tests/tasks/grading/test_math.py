"""The grader `math`: verdicts on answers written by hand, bounds in time, and its workers."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders, check_example, maths, worker
from axpo.tasks.grading.formulas import MAX_CHARACTERS, beyond_limits, read
from axpo.tasks.grading.maths import QUICK_SECONDS, Workers, math_worker
from axpo.tasks.grading.tidying import tidy
from axpo.tasks.grading.verdict import Verdict


def asked(*truths: str) -> Example:
    return Example("q", "What is it?", (), truths[0], truths[1:], "math")


def verdict(answer: str, *truths: str) -> Verdict:
    async def graded() -> Verdict:
        return await maths.math.grade(asked(*truths), answer)

    return asyncio.run(graded())


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        (r"\boxed{60°}", r"60", 1),
        (r"\boxed{11.5\text{ cm}}", r"11.5", 1),
        (r"\boxed{0.33}", r"$\frac{1}{3}$", 0),
        (r"\boxed{69}", r"69{degrees}", 1),
        (r"\boxed{8\sqrt{3}}", r"8\sqrt{3}{squareinches}", 1),
        (r"\boxed{\frac{3\pi}{4}}", r"\frac{3}{4}\pi{inches}", 1),
        (r"\boxed{\frac{16}{7}}", r"$\boxed{\frac{16}{7}}$", 1),
        (r"\boxed{7.004}", r"7", 0),
        (r"\boxed{C}", r"C", 1),
        (r"\boxed{\frac{1}{2}}", r"1:2", 1),
        (r"\boxed{2025}", r"45^2", 1),
        (r"\boxed{7{,}685{,}413{,}092}", r"7685413092", 1),
        (r"\boxed{(1,2)}", r"[1,2]", 0),
        (r"\boxed{\pi-\arctan\frac1d}", r"$\pi-\tan ^{-1}\left(\frac{1}{d}\right)$", 1),
        (r"\boxed{9^{9^9}}", r"1", 0),
        (r"\boxed{\$1.45}", r"1.45", 1),
        (r"\boxed{4.140}", r"4.14", 1),
        (r"\boxed{4.1}", r"4.14", 0),
    ],
)  # fmt: skip
def test_public_rows(answer: str, truth: str, reward: float) -> None:
    """Public benchmarks, each read wrong by some public grader."""
    check_example(asked(truth))
    assert verdict(answer, truth).reward == reward


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        (r"102", r"10²", 0),
        (r"10²", r"102", 0),
        (r"23", r"2³", 0),
        (r"x2", r"x²", 0),
        (r"\frac{A}{a}", r"\frac{a}{A}", 0),
        (r"\frac{A}{a}", r"\frac{A}{a}", 1),
        (r"Rr", r"rR", 0),
        (r"MW", r"mW", 0),
        (r"5 MW", r"5 mW", 0),
        (r"5'", r'5"', 0),
        (r"100", r"10²", 1),
        (r"10^2", r"10²", 1),
        (r"10^{2}", r"10²", 1),
        (r"½", r"1/2", 1),
        (r"√2", r"\sqrt{2}", 1),
        (r"n=3k", r"3", 0),
        (r"2014", r"2024-10", 0),
        (r"2024-10", r"2014", 0),
        (r"2024-10", r"2024-10", 1),
        (r"(1,2)", r"\{1,2\}", 0),
        (r"\{1,2\}", r"(1,2)", 0),
        (r"5 cm", r"5 m", 0),
        (r"1 1/2", r"3/2", 1),
        (r"1e3", r"1000", 1),
        (r"90^{\circ}", r"90°", 1),
        (r"3,4", r"4,3", 0),
        (r"3,4", r"3, 4", 1),
    ],
)  # fmt: skip
def test_texts_that_look_alike(answer: str, truth: str, reward: float) -> None:
    """Texts that mean different things, and different texts that mean the same."""
    check_example(asked(truth))
    assert verdict(answer, truth).reward == reward


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        # Math-Verify issue 14
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", 0),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", 0),
        (r"n=2, 3, 4", r"n=1, 2, 3", 0),
        (r"D = (0, 1)", r"D = (0, 1.5)", 0),
        (r"F_n = \sum_{k=0}^{n-1} F_k", r"F_n = \sum_{k=0}^{n-2} F_k", 0),
        (r"19, 46, \text{ and } 82", r"21, 36, and 82", 0),
        (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\frac{1}{3 \cdot 2^{2006}}", 0),
        (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}", 0),
        (r"\pm 2021", r"2021", 0),
        (r"12:00", r"1:00", 0),
        (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1", 0),
        (r"1:2:3:\ldots", r"1:4:9:\ldots", 0),
        # Math-Verify issue 21, and the same for physics
        (r"0.0000001", r"0.0000002", 0),
        (r"1.6 \times 10^{-19}", r"1.7 \times 10^{-19}", 0),
        (r"10^{-20} \pi", r"2 \cdot 10^{-20} \pi", 0),
        # what its parser makes of them: 3(4) is 7 there, 12_3 is 12, variables are in lower case
        (r"7", r"3(4)", 0),
        (r"12", r"3(4)", 1),
        (r"12", r"12_{3}", 0),
        (r"3/2", r"1\frac{1}{2}", 1),
    ],
)  # fmt: skip
def test_where_math_verify_differs(answer: str, truth: str, reward: float) -> None:
    """What math-verify alone takes for equal, or does not."""
    check_example(asked(truth))
    assert verdict(answer, truth).reward == reward


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        # numbers
        (r"3.0", r"3", 1),
        (r"３．５", r"3.5", 1),
        (r"٣", r"3", 1),
        (r"7 685", r"7685", 1),
        (r"7\,685", r"7685", 1),
        (r"2,500,000", r"2.5 \times 10^6", 1),
        (r"0.3333333333333333", r"1/3", 1),
        (r"0.333333", r"1/3", 0),
        (r"1.41421356", r"\sqrt{2}", 0),
        (r"6.02e23", r"6.02 \times 10^{23}", 1),
        (r"-1\frac{1}{2}", r"-1.5", 1),
        (r"10^{20}+1", r"10^{20}", 0),
        (r"2^{10000}+1", r"2^{10000}", 0),
        (r"e^{\pi\sqrt{163}}", r"262537412640768744", 0),
        (r"-3", r"3", 0),
        (r"2:1", r"1:2", 0),
        (r"1:2:3", r"2:4:6", 1),
        (r"1:2:3", r"3:2:1", 0),
        (r"\sqrt[3]{-8}", r"-2", 1),
        (r"0", r"\infty", 0),
        # units: one side's is ignored, both must agree, letters are no units
        (r"5", r"5 \text{ m}", 1),
        (r"5 \mathrm{cm}", r"5 centimetres", 1),
        (r"5 cm^2", r"5 \text{ square centimeters}", 1),
        (r"5 cm²", r"5 cm", 0),
        (r"500 cm", r"5 m", 0),
        (r"5m", r"5 \text{ m}", 1),
        (r"5m", r"5", 0),
        (r"10 \text{m}/\text{s}", r"10 m/s", 1),
        (r"10 \frac{\text{m}}{\text{s}}", r"10", 1),
        (r"10 m/s", r"10 km/h", 0),
        (r"60^{\circ}", r"60°", 1),
        (r"60^{\circ}", r"\frac{\pi}{3}", 0),
        (r"25°C", r"25°F", 0),
        (r"12 students", r"12", 1),
        (r"12 students", r"12 teachers", 0),
        (r"12 million", r"12", 0),
        (r"2 dozen", r"2", 0),
        (r"5 squared", r"5", 0),
        (r"50\%", r"50", 1),
        (r"50\%", r"0.5", 1),
        (r"0.5", r"50%", 1),
        (r"5\%", r"50", 0),
        (r"\$5", r"€5", 0),
        (r"45\text{ degrees}", r"45", 1),
        (r"3\text{ hours}", r"3", 1),
        (r"2\sqrt{2} \text{ units}", r"2\sqrt{2}", 1),
        (r"12\pi\ \text{cm}^3", r"12\pi", 1),
        (r"9.8 \text{ m/s}^2", r"9.8 m/s^2", 1),
        # a name is no value, two names must be one
        (r"x = 3", r"3", 1),
        (r"3", r"x = 3", 1),
        (r"y = 3", r"x = 3", 0),
        (r"X = 3", r"x = 3", 0),
        (r"A = \pi r^2 = 25\pi", r"25\pi", 1),
        (r"f(x) = 2x + 1", r"y = 2x + 1", 1),
        (r"x^2 + y^2 = 5", r"5", 0),
        (r"3x = 5", r"5", 0),
        (r"\frac{10}{3} \approx 3.33", r"\frac{10}{3}", 1),
        (r"\frac{10}{3} \approx 3.33", r"3.33", 0),
        (r"\approx 3.14", r"3.14", 1),
        (r"y = 2x", r"2x - y = 0", 1),
        (r"y = 2x", r"2x + y = 0", 0),
        (r"\text{A and C}", r"A, C", 1),
        (r"S_{\triangle ABC} = 12", r"12", 1),
        (r"\tan(\alpha+\beta)", r"\frac{\tan\alpha+\tan\beta}{1-\tan\alpha\tan\beta}", 1),
        (r"2x^2 + 2y^2 = 8", r"x^2 + y^2 = 4", 1),
        (r"x^2 + y^2 = 5", r"x^2 + y^2 = 4", 0),
        (r"0 = 0", r"x^2 + y^2 = 4", 0),
        (r"x = x", r"y = 2x", 0),
        (r"1 = 2", r"x^2 = -1", 0),
        (r"3 < x", r"x > 3", 1),
        (r"-2x < -6", r"x > 3", 1),
        (r"x < 3", r"x > 3", 0),
        (r"x \ge 3", r"x > 3", 0),
        (r"x \ge 3", r"[3, \infty)", 1),
        (r"1 < x \le 2", r"(1, 2]", 1),
        (r"2 \ge x > 1", r"1 < x \le 2", 1),
        (r"x \neq 3", r"x = 3", 0),
        # lists, sets, intervals: a policy that hedges
        (r"3, 4, 5, 6", r"4", 0),
        (r"3 or 4", r"4", 0),
        (r"x = 1 or x = 2", r"1", 0),
        (r"1", r"x = 1 or x = 2", 0),
        (r"2 or 1", r"x = 1 or x = 2", 1),
        (r"x = 2, x = 1", r"x = 1, x = 2", 1),
        (r"y = 4, x = 3", r"x = 3, y = 4", 1),
        (r"4, 3", r"x = 3, y = 4", 0),
        (r"2, -2", r"\pm 2", 1),
        (r"\pm 2", r"2", 0),
        (r"\pm 2", r"\pm 2", 1),
        (r"2, 1", r"\{1, 2\}", 1),
        (r"\{2, 1\}", r"\{1, 2\}", 1),
        (r"\{1, 2, 3\}", r"\{1, 2\}", 0),
        (r"\{1,2,3,\ldots\}", r"\{1, 2, 3\}", 0),
        (r"\{1,2,3,...\}", r"2", 0),
        (r"[0, 100]", r"50", 0),
        (r"(-\infty, \infty)", r"3", 0),
        (r"\mathbb{R}", r"3", 0),
        (r"(1, 2]", r"(1, 2)", 0),
        (r"[1, 2)", r"[1, 2)", 1),
        (r"(2, 1)", r"(1, 2)", 0),
        (r"(0.5, \sqrt{4})", r"(\frac12, 2)", 1),
        (r"(2,\infty)\cup(-\infty,1)", r"(-\infty, 1) \cup (2, \infty)", 1),
        (r"(2,\infty)", r"(-\infty, 1) \cup (2, \infty)", 0),
        (r"((1,2),3)", r"(1,(2,3))", 0),
        (r"\boxed{3}, \boxed{4}", r"3", 0),
        # expressions
        (r"(x+1)^2", r"x^2 + 2x + 1", 1),
        (r"x/x", r"1", 1),
        (r"5 + x - x", r"5", 1),
        (r"5 + x", r"5", 0),
        (r"\sqrt{x^2}", r"x", 0),
        (r"\sqrt{x^2}", r"|x|", 1),
        (r"2 \ln x", r"\ln x^2", 1),
        (r"\sin^2 x + \cos^2 x", r"1", 1),
        (r"\sin 30^\circ", r"\frac12", 1),
        (r"\log_2 8", r"3", 1),
        (r"n!", r"n \cdot (n-1)!", 1),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", 1),
        (r"4/3\pi r^3", r"\frac{4}{3}\pi r^3", 1),
        (r"\frac{x_1 + x_2}{2}", r"\frac{x_{2} + x_{1}}{2}", 1),
        (r"x_1", r"x_2", 0),
        (r"\theta", r"θ", 1),
        (r"f(x)", r"f(y)", 0),
        (r"f(x) + 1", r"1 + f(x)", 1),
        (r"i^2", r"-1", 1),
        (r"\int_0^1 x dx", r"\frac12", 1),
        (r"\sum_{k=1}^{10} k", r"55", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&3\\2&4\end{bmatrix}", 0),
        (r"\frac{0}{0}", r"3", 0),
        (r"\frac{3}{0}", r"\infty", 0),
        (r"\infty - \infty", r"0", 0),
        # words, names and letters
        (r"No solution.", r"no solution", 1),
        (r"yes", r"Yes", 1),
        (r"no", r"yes", 0),
        (r"BCA", r"BAC", 0),
        (r"\text{(B)}", r"B", 1),
        (r"c", r"C", 0),
        (r"АВ", r"AB", 0),
        (r"а", r"a", 0),
        (r"3​.5", r"3.5", 1),
        (r"11/02/2006", r"11/2/2006", 0),
        (r"\varnothing", r"∅", 1),
        (r"\triangle ABC", r"\triangle ACB", 0),
        (r"\angle ABC = 60°", r"60", 1),
        # sentences
        (r"So the result is 42.", r"42", 1),
        (r"The area is 12 square cm.", r"12", 1),
        (r"The area is 12 square cm.", r"12 \text{ cm}", 0),
        (r"There are 3 red and 4 blue ones.", r"3", 0),
        (r"It costs at least 5", r"5", 0),
        (r"It is not 5", r"5", 0),
        (r"We see that $\frac{1}{2}$ remains", r"0.5", 1),
        (r"We see $3$ or perhaps $4$", r"3", 0),
        (r"I cannot tell", r"3", 0),
        # nothing
        (r"\boxed{}", r"3", 0),
        (r"\boxed{ }", r"0", 0),
        (r"<answer></answer>", r"3", 0),
        (r"$$", r"3", 0),
        (r"\text{}", r"3", 0),
        (r"nan", r"3", 0),
        (r"nothing", r"3", 0),
        (r"\boxed{\frac{}{{{}}", r"3", 0),
    ],
)  # fmt: skip
def test_forms(answer: str, truth: str, reward: float) -> None:
    """What an honest, a lazy or a cheating policy writes."""
    check_example(asked(truth))
    assert verdict(answer, truth).reward == reward


def test_a_lost_escape_is_repaired() -> None:
    lost = "\frac{36}{13}"  # a form feed, not a backslash
    check_example(asked(lost))
    assert verdict(r"\boxed{\frac{36}{13}}", lost).reward == 1


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ("", "nothing that an answer could equal"),
        (" $$ ", "nothing that an answer could equal"),
        ("nan", "a missing number"),
        ("-inf", "a missing number"),
        (r"\frac{1}{2", "braces do not match"),
        ("1+" * MAX_CHARACTERS + "1", "characters"),
        ("(" * 30 + "1" + ")" * 30, "nested 30 deep"),
    ],
)
def test_truths_that_no_answer_can_give_are_refused(truth: str, problem: str) -> None:
    with pytest.raises(GradingError, match=problem):
        check_example(asked(truth))


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        (r"\frac{1}{0}", "no value"),
        (r"3 \star 4", "cannot be read"),
        ("9^{9^{9^9}}", "too large"),
        (r"\sum_{k=1}^{10^9} \frac{1}{k}", "takes too long"),
    ],
)
def test_a_truth_that_cannot_be_compared_is_our_fault_and_looked_at_once(
    truth: str, problem: str
) -> None:
    with pytest.raises(GradingError, match=problem):
        verdict("5", truth)
    began = time.monotonic()
    with pytest.raises(GradingError, match=problem):
        verdict("6", truth)
    assert time.monotonic() - began < 1
    assert verdict(truth, truth).reward == 1  # the same text is the same


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^9}", "9^{9^{9^{9}}}", "(10^8)!", "((3!)!)!", "10^{10^{10}} - 10^{10^{10}} + 1",
        r"\sum_{k=1}^{10^9} \frac{1}{k}", r"\binom{10^9}{10^8}", r"\int_0^1 x^{x^{x^x}} dx",
        "(" * 3000 + "1" + ")" * 3000, "{" * 20000 + "}" * 20000, "{" * 19 + "1" + "}" * 19,
        r"\frac{1}{" * 400 + "1" + "}" * 400, r"\sqrt{" * 19 + "2" + "}" * 19, "1+" * 900 + "1",
        "x" * 1900, "1," * 900 + "1", r"\pm " * 400 + "1", "2^" * 900 + "2", "-" * 1900 + "1",
        r"\sin " * 300 + "1", "!" * 1900, "5" + "!" * 50, "|" * 1900, "f(" * 15 + "1" + ")" * 15,
        r"\prod_{k=1}^{10^8} k", r"5^{5^{5^{5^5}} - 4} - 5", "10^{100000}", "1" * 50_000,
        r"e^{e^{e^{e^{e^{10}}}}}", "9" * 1900 + "^" + "9" * 90, r"\lfloor 10^{10^{9}} \rfloor",
        "1/" * 900 + "1", r"\{" * 15 + "1" + r"\}" * 15, "0.5^{-9^{9^9}}", "1e999999999",
    ],
    ids=lambda bomb: bomb[:20],
)  # fmt: skip
def test_a_huge_answer_is_wrong_in_bounded_time(bomb: str) -> None:
    began = time.monotonic()
    found = verdict(f"\\boxed{{{bomb}}}", "7.5")
    assert found.reward == 0
    assert time.monotonic() - began < 30
    assert verdict("15/2", "7.5").reward == 1
    assert verdict(r"\frac{\sqrt{225}}{2}", "7.5").reward == 1


def test_bombs_hold_up_others_for_a_moment_alone() -> None:
    """Four bombs, every one another: the answer behind them has its verdict before most do."""

    async def together() -> tuple[list[float], int]:
        bombs = [f"\\boxed{{\\sum_{{k=1}}^{{{10**9 + n}}} \\frac{{2}}{{k}}}}" for n in range(4)]
        grading = [asyncio.ensure_future(maths.math.grade(asked("2"), bomb)) for bomb in bombs]
        await asyncio.sleep(0)
        right = await maths.math.grade(asked("2"), r"\boxed{\sqrt{4}}")
        waiting = sum(not one.done() for one in grading)
        return [right.reward, *(one.reward for one in await asyncio.gather(*grading))], waiting

    rewards, waiting = asyncio.run(together())
    assert rewards == [1.0] + [0.0] * 4
    assert waiting >= 2


def test_a_bomb_is_remembered() -> None:
    bomb = r"\boxed{\sum_{k=1}^{10^9} \frac{3}{k}}"
    assert verdict(bomb, "2").reward == 0
    began = time.monotonic()
    assert [verdict(bomb, "2").reward for _ in range(20)] == [0] * 20
    assert time.monotonic() - began < 1.5


def test_gradings_take_turns_on_the_loop() -> None:
    """Forty texts that take milliseconds each do not stop the loop for their sum."""
    flood = "“" * 20_000

    async def longest() -> tuple[float, float]:
        graders, most = Graders(), 0.0

        async def tick() -> None:
            nonlocal most
            while True:
                began = time.thread_time()
                await asyncio.sleep(0)
                most = max(most, time.thread_time() - began)

        ticking = asyncio.ensure_future(tick())
        began = time.thread_time()
        example = Example("q", "?", (), "blue", (), "exact")
        await asyncio.gather(*(graders.grade_answer(example, flood) for _ in range(40)))
        ticking.cancel()
        return most, time.thread_time() - began

    most, altogether = asyncio.run(longest())
    assert most < altogether / 5


ENDLESS = [[r"\sum_{k=1}^{10^9} \frac{1}{k}"], "5"]


def test_a_worker_ends_a_comparison_and_goes_on() -> None:
    own = math_worker()
    assert own.ask([["2/4"], "0.5"], 2.0) == "equal"
    assert own._process is not None
    process = own._process
    assert own.ask(ENDLESS, QUICK_SECONDS) is None
    assert own.ask([["1/2"], "0.5"], 2.0) == "equal"
    assert own._process is process
    own.close()
    assert process.poll() is not None


def test_a_comparison_that_takes_too_long_is_wrong() -> None:
    readings, truth = ENDLESS
    assert asyncio.run(Workers().outcome(tuple(readings), str(truth))) == "it takes too long"


def test_a_dead_worker_is_replaced() -> None:
    own = math_worker()
    assert own.ask([["5.0"], "5"], 2.0) == "equal"
    assert own._process is not None
    os.killpg(own._process.pid, signal.SIGKILL)
    own._process.wait()
    assert own.ask([["5.0"], "5"], 2.0) == "equal"
    own.close()


def test_a_worker_that_does_not_start_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.sys, "executable", "/does/not/exist")
    with pytest.raises(GradingError, match="math worker does not start"):
        asyncio.run(Workers().outcome(("1/2",), "0.5"))


def test_a_worker_killed_from_outside_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WALL_SECONDS", 0.0)
    slow = math_worker()
    with pytest.raises(GradingError, match="no result after 0 s"):
        slow.ask(ENDLESS, 2.0)
    assert slow._process is None


@pytest.mark.parametrize(
    ("answer", "truth", "rule", "detail"),
    [
        ("\\boxed{7}", "7", "math: same text", "read '7', expected '7'"),
        ("0.5", "1/2", "math: number", "read '0.5', expected '1/2'"),
        (r"\sqrt{4}", "2", "math: value", "read '\\\\sqrt{4}', expected '2'"),
        (r"\star", "2", "math: unreadable", "'\\\\star' was not expected"),
        ("<answer></answer>", "2", "math: no answer", "read nothing"),
        ("9" * 3000, "2", "math: too large", "3000 characters"),
        ("9^{9^{9^9}}", "2", "math: unreadable", "too large: a power"),
    ],
)
def test_a_verdict_says_what_decided(answer: str, truth: str, rule: str, detail: str) -> None:
    found = verdict(answer, truth)
    assert found.rule == rule
    assert detail in found.detail


def test_any_truth_may_be_met() -> None:
    assert verdict("0.5", "2", r"\frac{1}{2}", "3").reward == 1
    assert verdict("0.6", "2", r"\frac{1}{2}", "3").reward == 0


@pytest.mark.parametrize(
    "piece",
    ["1", "(", r"\text{", " ", "1 ", "{", "a", "1 000 ", "½", "√", r"\boxed{", "$", "=x", "a b ",
     "1{", r"\frac{1}", "or ", "\\", r"\$", "1.", "'", r"\overline{A}"],
)  # fmt: skip
def test_reading_takes_linear_time(piece: str) -> None:
    text = (piece * MAX_CHARACTERS)[:MAX_CHARACTERS]
    began = time.perf_counter()
    if beyond_limits(found := tidy(text)) is None:
        read(found)
    assert time.perf_counter() - began < 1
