#!/usr/bin/env python3
"""Derive csrc/coefficients.h: every constant of the elementary functions in csrc/logistic.h.

    python csrc/coefficients.py           write coefficients.h and print a table of the approximation errors
    python csrc/coefficients.py --check   derive everything again and compare with the committed coefficients.h

Two series are approximated, each so that the greatest *relative* error of the function's final value is least. The
functions of logistic.h say how q is used:

    q(t) of exp_reduced    |t| <= ln 2 / 2 and a little more, by which rounding n can overshoot
    q(e) of log1p_unit     0 <= e <= 1

log(u) for u in (0, 1] needs no series of its own: u = 2^n f with f in [1, 2) has log(u) = n ln 2 + log1p(f - 1).

The leading terms are exact, so a tail (t or e near 0) keeps all its digits. Remez' exchange algorithm finds the best q
in 200-bit arithmetic (mpmath). Its coefficients are then rounded to the target format from the leading one on, each
time with the remaining ones fitted again, so that they absorb what the rounding lost. For the rounded coefficients
`proven_error` bounds the error over the whole interval, and the header states that bound.

How many coefficients: the fewest with which float stays within 2.5 ulp for gradients and 3 ulp for losses. Operations
(each counts 1, exp and log1p together) and greatest errors in ulp over every 9th float:

    exp  log1p  operations   loss   gradient e / (1 + e)   gradient (1 / (1 + e)) e
     5     8        23       2.03          2.34                   2.75                the one in use
     4     8        22       2.87          3.37                   3.75
     5     7        22       5.08          2.34                   2.75
     5     9        24       1.78          2.34                   2.75                no better gradient
     6    10        26       1.80          2.34                   2.75                as good as it gets
     5     8        22       4.47          4.47                   4.47                without ln2_low
     5     8        24       2.03          2.34                   2.75                1 + (t + t^2 q): nothing gained
     5     8        24       2.55           -                     2.78                (1 + t) + t^2 q

Over every finite float the first one has 2.194 (loss) and 2.402 (gradient): tests/test_formula_exhaustive.py.

One coefficient is moved by a unit in its last place: the loss of two more fp16 logits is correctly rounded then, of all
but two (tests/test_half_exhaustive.py), and the greatest error hardly grows (2.183 without).
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mpmath import cos, exp, floor, frexp, ldexp, log, log1p, lu_solve, matrix, mp, mpf, nint, pi

mp.prec = 200
HEADER = Path(__file__).with_name("coefficients.h")
GRID = 800  # points on which Remez looks for the greatest error; `proven_error` covers what lies between
PIECES = 600  # subintervals of the proof
LOG_SCALE = 64


@dataclass
class Format:
    """A binary floating-point format and how many coefficients each series gets in it.

    log1p_nudge: the place of a coefficient of log1p, and how many units in its last place it is moved at the end.
    """

    scalar: str
    suffix: str
    precision: int  # bits of the significand, the hidden one included
    exponent_bias: int
    exp_count: int
    log1p_count: int
    log1p_nudge: tuple[int, int] | None = None

    def round(self, x):
        mantissa, exponent = frexp(x)
        return ldexp(nint(ldexp(mantissa, self.precision)), exponent - self.precision)

    def literal(self, x):
        """x as a hexadecimal floating-point literal, which no compiler can round."""
        assert self.round(x) == x and mpf(float(x)) == x
        mantissa, exponent = float(x).hex().split("p")
        return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}{self.suffix}"


FORMATS = [
    Format("float", "f", precision=24, exponent_bias=127, exp_count=5, log1p_count=8, log1p_nudge=(5, -1)),
    Format("double", "", precision=53, exponent_bias=1023, exp_count=10, log1p_count=19),
]


def horner(coefficients, x):
    total = mpf(0)
    for c in reversed(coefficients):
        total = total * x + c
    return total


# ---- Best approximation --------------------------------------------------------------------------------------------


def remez(points, target, weight, count, reference=None):
    """The c[0..count) that minimise max |target - weight (c[0] + c[1] x + ...)| over the points.

    By Chebyshev's theorem the error of the best ones takes its greatest size at count + 1 reference points with
    alternating sign (relative to the weight's sign). Each round solves for the c that level the error on the current
    reference and moves the reference to the extremes of the error that this leaves.
    Returns the coefficients and the reference.
    """
    if reference is None:
        nodes = chebyshev_points(mpf(0), mpf(len(points) - 1), count + 1)
        reference = [int(nint(j)) for j in nodes]
    while True:
        system, right = matrix(count + 1, count + 1), matrix(count + 1, 1)
        for row, j in enumerate(reference):
            sign = (-1) ** row * (1 if weight[j] > 0 else -1)
            power = weight[j]
            for k in range(count):
                system[row, k] = power
                power *= points[j]
            system[row, count] = sign
            right[row] = target[j]
        solution = list(lu_solve(system, right))
        coefficients, level = solution[:count], abs(solution[count])
        error = [f - w * horner(coefficients, x) for x, f, w in zip(points, target, weight, strict=True)]

        extremes = []  # the greatest error of each stretch of equal sign
        for j, value in enumerate(error):
            sign = (value > 0) == (weight[j] > 0)
            if not extremes or extremes[-1][0] != sign:
                extremes.append((sign, j))
            elif abs(value) > abs(error[extremes[-1][1]]):
                extremes[-1] = (sign, j)
        candidates = [j for _, j in extremes]
        while len(candidates) > count + 1:  # drop the smallest, and the smaller of its neighbours, now of one sign
            choice = range(len(candidates)) if len(candidates) > count + 2 else (0, len(candidates) - 1)
            k = min(choice, key=lambda i: abs(error[candidates[i]]))
            if k in (0, len(candidates) - 1):
                candidates.pop(k)
            else:
                kept = max(candidates[k - 1], candidates[k + 1], key=lambda j: abs(error[j]))
                candidates[k - 1 : k + 2] = [kept]
        assert len(candidates) == count + 1
        if max(map(abs, error)) <= level * (1 + mpf(10) ** -4):
            return coefficients, reference
        reference = candidates


def rounded_fit(number_format, points, target, weight, count):
    """Coefficients in the format: each in turn rounded, the later ones fitted again to what is left."""
    rounded, reference = [], None
    for k in range(count):
        coefficients, reference = remez(points, target, weight, count - k, reference)
        c = number_format.round(coefficients[0])
        rounded.append(c)
        target = [f - w * c for f, w in zip(target, weight, strict=True)]
        weight = [w * x for w, x in zip(weight, points, strict=True)]
        reference = reference[1:]
    return rounded


def chebyshev_points(low, high, count):
    """Extremes of a Chebyshev polynomial: denser towards the ends, like those of a best approximation's error."""
    return [(low + high) / 2 - (high - low) / 2 * cos(pi * i / (count - 1)) for i in range(count)]


# ---- Proof ---------------------------------------------------------------------------------------------------------


def taylor_shift(coefficients, c):
    """The coefficients in u of a polynomial in x = c + u."""
    shifted = list(coefficients)
    for start in range(len(shifted) - 1):
        for k in range(len(shifted) - 2, start - 1, -1):
            shifted[k] += c * shifted[k + 1]
    return shifted


def bound(coefficients, h):
    """An upper bound of |a[0] + a[1] u + a[2] u^2 + ...| over |u| <= h."""
    constant, slope = abs(coefficients[0]), abs(coefficients[1])
    return constant + slope * h + sum(abs(a) * h**k for k, a in enumerate(coefficients) if k >= 2)


def proven_error(approximation, taylor, low, high):
    """An upper bound of |approximation / exact - 1| over [low, high].

    The interval is cut into pieces. On each the difference from the function's Taylor polynomial about the centre is
    itself a polynomial, which `bound` bounds; the rest of the Taylor series is added, and the function's least value
    on the piece makes it relative. mpmath's own rounding, 2^-200, is far below the bounds.
    taylor(c, h) -> Taylor coefficients about c, a bound of the rest and of 1 / the function for |u| <= h.
    """
    worst, ends = mpf(0), chebyshev_points(low, high, PIECES + 1)
    for left, right in pairwise(ends):
        touches_zero = left == 0  # log1p(0) = 0: there both sides are divided by x, by taking the series about 0
        c, h = (mpf(0), right) if touches_zero else ((left + right) / 2, (right - left) / 2)
        series, rest, inverse = taylor(c, h)
        shifted = taylor_shift(approximation, c)
        shifted += [mpf(0)] * (len(series) - len(shifted))
        difference = [p - f for p, f in zip(shifted, series, strict=True)]
        if touches_zero:
            assert difference[0] == 0
            difference, rest, inverse = difference[1:], rest / h, inverse * h
        worst = max(worst, (bound(difference, h) + rest) * inverse)
    return worst


def exp_taylor(c, h, terms=30):
    """exp(c + u) = sum exp(c) u^k / k!; the rest is less than twice its first term, for h <= 1."""
    series = [exp(c)]
    for k in range(1, terms + 1):
        series.append(series[-1] / k)
    return series[:-1], 2 * series[-1] * h**terms, exp(h - c)


def log1p_taylor(c, h, terms=48):
    """log1p(c + u) = log1p(c) - sum (-u / (1 + c))^k / k; the rest is less than twice its first term, for h <= 1/2.

    1 / log1p is greatest at c - h, but on the piece about c = 0, where it is x / log1p(x) that counts, at h.
    """
    series = [log1p(c)] + [-((-1 / (1 + c)) ** k) / k for k in range(1, terms)]
    return series, 2 * (h / (1 + c)) ** terms, 1 / log1p(h if c == 0 else c - h)


# ---- The header ----------------------------------------------------------------------------------------------------


@dataclass
class Series:
    name: str
    meaning: str
    coefficients: list
    error: mpf  # proven bound of the relative error


def exp_series(f, lowest):
    """q of exp_reduced. log2(e) is rounded, so near a tie n may be the farther integer; t is rounded."""
    n_error = abs(lowest * (f.round(1 / log(2)) - 1 / log(2)))
    reach = log(2) * (mpf(1) / 2 + n_error) + ldexp(1, -f.precision)
    points = [t for t in chebyshev_points(-reach, reach, GRID) if t != 0]
    target, weight = [1 - (1 + t) * exp(-t) for t in points], [t**2 * exp(-t) for t in points]
    q = rounded_fit(f, points, target, weight, f.exp_count)
    error = proven_error([mpf(1), mpf(1), *q], exp_taylor, -reach, reach)
    return Series("Exp", f"q of exp_reduced, |t| <= {float(reach):.8f}", q, error)


def log1p_series(f):
    """q of log1p_unit."""
    points = chebyshev_points(mpf(0), mpf(1), GRID)[1:]
    target, weight = [1 - e / log1p(e) for e in points], [e**2 / log1p(e) for e in points]
    q = rounded_fit(f, points, target, weight, f.log1p_count)
    if f.log1p_nudge is not None:
        place, units = f.log1p_nudge
        q[place] += ldexp(units, frexp(q[place])[1] - f.precision)
    error = proven_error([mpf(0), mpf(1), *q], log1p_taylor, mpf(0), mpf(1))
    return Series("Log1p", "q of log1p_unit, 0 <= e <= 1", q, error)


def coefficients_struct(f):
    """Coefficients<scalar> as C++, and its two series."""
    mantissa_bits = f.precision - 1
    smallest = f.exponent_bias - 1 + mantissa_bits  # 2^-smallest is the least number above 0
    lowest = floor(-(smallest + 1) * log(2))
    bias = (f.exponent_bias + 1) // 2
    free_bits = smallest.bit_length()  # as many as n has
    ln2_high = ldexp(nint(ldexp(log(2), f.precision - free_bits)), free_bits - f.precision)
    constants = [
        ("From here on down exp rounds to 0.", "exp_lowest", lowest),
        (
            f"Adding it rounds to the integer n; shifted left by mantissa_bits the sum is 2^(n + {bias}).",
            "exp_shifter",
            3 * ldexp(1, mantissa_bits - 1) + f.exponent_bias + bias,
        ),
        ("", "exp_unbias", ldexp(1, -bias)),
        (
            "Of a large n it is subtracted, and the result multiplied by 2 to that power.",
            "exp_lowered",
            mpf(1.5 * bias),
        ),
        ("", "exp_raise", ldexp(1, int(1.5 * bias))),
        ("", "log2_e", f.round(1 / log(2))),
        ("ln 2 in two parts; n ln2_high is exact.", "ln2_high", ln2_high),
        ("", "ln2_low", f.round(log(2) - ln2_high)),
        (f"log: 2^{LOG_SCALE} u is normal for every u above 0.", "log_scale", ldexp(1, LOG_SCALE)),
        (
            "With a biased exponent in its lowest bits it is itself plus the exponent.",
            "log_shifter",
            ldexp(1, mantissa_bits),
        ),
        (
            "What is subtracted then, so that n is left: log_shifter and the bias.",
            "log_unshift",
            ldexp(1, mantissa_bits) + f.exponent_bias,
        ),
        (
            f"And {LOG_SCALE}, where it was scaled.",
            "log_unshift_scaled",
            ldexp(1, mantissa_bits) + f.exponent_bias + LOG_SCALE,
        ),
        (
            "2^bias. Its bits less the exponent's bits of x are the power of 2 that scales x to [1, 2).",
            "log_invert",
            ldexp(1, f.exponent_bias),
        ),
    ]
    series = [exp_series(f, lowest), log1p_series(f)]
    lines = ["template <>", f"struct Coefficients<{f.scalar}> {{"]
    lines += [f"  static constexpr int mantissa_bits = {mantissa_bits};"]
    for comment, name, value in constants:
        lines += [f"  // {comment}"] if comment else []
        lines += [f"  static constexpr {f.scalar} {name} = {f.literal(value)};"]
    for s in series:
        lines += ["", f"  // {s.meaning}: relative error of the result below {power_of_two(s.error)}."]
        lines += [f"  struct {s.name} {{", f"    static constexpr int count = {len(s.coefficients)};"]
        lines += [f"    FL_FN constexpr {f.scalar} at(int i) {{", f"      constexpr {f.scalar} c[count] = {{"]
        literals = [f"{f.literal(c)}," for c in s.coefficients]
        width = max(map(len, literals))  # the comments keep clang-format from putting several on a line
        lines += [f"          {c:{width}}  // {float(v):.9g}" for c, v in zip(literals, s.coefficients, strict=True)]
        lines += ["      };", "      return c[i];", "    }", "  };"]
    return [*lines, "};"], series


def power_of_two(error):
    """A bound as 2^-x, rounded to the safe side."""
    return f"2^-{float(floor(-100 * log(error, 2)) / 100):.2f}"


def header():
    """The text of coefficients.h and the rows of the table of errors."""
    lines = [
        "// Generated by csrc/coefficients.py, which derives and explains every number here: edit and run that.",
        "#pragma once",
        "",
        "namespace fused_logistic {",
        "",
        "template <class T>",
        "struct Coefficients;",
    ]
    table = []
    for f in FORMATS:
        struct, series = coefficients_struct(f)
        lines += ["", *struct]
        for s in series:
            relative = float(s.error * 2**f.precision)
            table.append(f"{f.scalar:8}{s.name:8}{len(s.coefficients):5}   {power_of_two(s.error):9}{relative:8.3f}")
    return "\n".join([*lines, "", "}  // namespace fused_logistic"]) + "\n", table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed header instead of writing it")
    check = parser.parse_args().check
    text, table = header()
    print("scalar  series  count   error    in 2^-precision")
    print(*table, sep="\n")
    if not check:
        HEADER.write_text(text)
    elif HEADER.read_text() != text:
        sys.exit(f"{HEADER.name} is not what {Path(__file__).name} derives: run it and commit the header")


if __name__ == "__main__":
    main()
