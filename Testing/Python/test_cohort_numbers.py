"""What a run's numbers are said to mean: statistics, tables, advice and the report."""

import csv
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_produce import VARIANTS
from FoundationRegLib.cohort import statistics
from FoundationRegLib.cohort.advice import advice
from FoundationRegLib.cohort.job import Variant
from FoundationRegLib.cohort.report import PICTURE, write_report
from FoundationRegLib.cohort.statistics import BY_KEY, Numbers
from FoundationRegLib.cohort.tables import escaped, latex, write_summaries
from scipy import stats


def row(id, variant, task="", **numbers):
    folder = f"{id}/{variant}"
    return {
        "id": id,
        "task": task,
        "variant": variant,
        "status": "done",
        "folder": folder,
        "quality": "Fine.",
        **numbers,
    }


def failed(id, variant):
    return {"id": id, "task": "", "variant": variant, "status": "failed", "reason": "It <broke>.", "folder": f"{id}/x"}


def cohort(count=20, gain=0.02, noise=0.01, seed=3, **more):
    """Rows of MIND alone and of another encoder that is better by ``gain``."""
    generator = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        base = float(generator.normal(0.8, 0.05))
        for name, value in (("mind", base), ("other", base + gain + float(generator.normal(0, noise)))):
            rows.append(row(f"p{n}", name, dice=value, dice_before=0.5, dice_linear=0.6, seconds=10.0, **more))
    return rows


SETTINGS = {"mind": {"encoders": [["mind", 1.0]]}, "other": {"encoders": [["other", 1.0]]}}


def test_spread_and_interval_of_known_values():
    values = [1.0, 2.0, 3.0, 4.0, math.nan]
    found = statistics.spread(values, better=1)
    assert (found.count, found.mean, found.median, found.worst) == (4, 2.5, 2.5, 1.0)
    assert found.sd == pytest.approx(np.sqrt(5 / 3)) and found.quartiles == (1.75, 3.25)
    generator = np.random.default_rng(0)
    sample = generator.normal(10, 2, 400)
    low, high = statistics.interval(sample)
    # For a normal sample of this size the bootstrap agrees with Student's interval.
    student = stats.t.interval(0.95, 399, sample.mean(), stats.sem(sample))
    np.testing.assert_allclose((low, high), student, atol=0.02)
    assert statistics.interval(np.full(5, 3.0)) == (3.0, 3.0)
    assert all(map(math.isnan, statistics.interval(np.array([1.0, 2.0]))))
    assert statistics.spread([]).count == 0


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    generator = np.random.default_rng(1)
    inside = sum(
        low <= 1.0 <= high for low, high in (statistics.interval(generator.exponential(1, 30)) for _ in range(200))
    )
    assert 0.86 < inside / 200 < 0.99


def test_signed_rank_is_the_exact_one_and_tells_too_few():
    # All of n differences positive: two-sided p is 2 / 2**n.
    assert statistics.signed_rank(np.arange(1.0, 9.0)) == pytest.approx(2 / 2**8)
    assert statistics.signed_rank(np.zeros(10)) == 1.0
    assert math.isnan(statistics.signed_rank(np.ones(5)))


def test_holm_of_a_worked_example():
    # Holm 1979: sorted p times the number of tests left, never falling.
    assert statistics.holm([0.01, 0.04, 0.03, math.nan]) == [0.03, 0.06, 0.06, pytest.approx(math.nan, nan_ok=True)]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_variants_are_compared_on_pairs_that_all_finished():
    rows = [*cohort(8), row("extra", "mind", dice=0.0), failed("extra", "other")]
    numbers = Numbers(rows)
    assert len(numbers.common()) == 8 and numbers.ranking() == ["other", "mind"]
    assert numbers.spreads("mind", BY_KEY["dice"]).count == 8
    (comparison,) = [c for c in numbers.comparisons() if c.metric == "dice"]
    assert (comparison.variant, comparison.reference, comparison.count) == ("other", "mind", 8)
    differences = [b["dice"] - a["dice"] for a, b in zip(rows[:16:2], rows[1:16:2], strict=True)]
    assert comparison.difference == pytest.approx(np.mean(differences))
    assert comparison.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert numbers.worst("mind", 1) == ["extra"]


def test_the_deciding_metric_is_one_that_all_pairs_have():
    rows = [row(f"p{n}", "a", tre_mm=float(n), **({"dice": 0.9} if n else {})) for n in range(3)]
    assert Numbers(rows).primary().key == "tre_mm"
    rows += [row(f"p{n}", "b", tre_mm=float(n) - 0.5) for n in range(3)]
    assert Numbers(rows).ranking() == ["b", "a"], "less error is better"
    assert Numbers([row("p", "a", nmi=1.2)]).primary().key == "nmi"


def test_advice_names_a_proven_gain_over_mind_alone():
    sentence = advice(Numbers(cohort(20, gain=0.02)), SETTINGS)
    assert sentence.startswith("Use other: Dice 0.8") and "0.500" in sentence
    assert re.search(r"0\.0(19|20|21|22) better than mind, MIND alone \(p = \S+e-0\d\)", sentence), sentence


def test_advice_does_not_call_chance_or_trifles_a_gain():
    rows = cohort(8, gain=0.0, noise=0.0)
    for other, change in zip(rows[1::2], (0.05, -0.03, 0.04, -0.02, 0.03, -0.01, 0.02, -0.02), strict=True):
        other["dice"] += change
    chance = advice(Numbers(rows), SETTINGS)
    trifle = advice(Numbers(cohort(20, gain=0.001, noise=0.0001)), SETTINGS)
    assert chance.startswith("Use mind, MIND alone") and "within chance" in chance
    assert trifle.startswith("Use mind, MIND alone") and "too small to matter" in trifle
    worse = advice(Numbers(cohort(20, gain=-0.02)), SETTINGS)
    assert worse.startswith("Use mind") and "no encoder was better than MIND alone" in worse


def test_advice_on_one_pair_on_folding_and_on_failure():
    one = advice(Numbers(cohort(1, gain=0.1)), SETTINGS)
    assert "on 1 pair" in one and "seen on 1 pair only" in one
    assert "fold" in advice(Numbers(cohort(8, folded_percent=0.3)), SETTINGS)
    assert "nothing to advise" in advice(Numbers([failed("a", "mind")]), SETTINGS)
    assert "MIND alone was not among" in advice(Numbers(cohort(8)), {"mind": SETTINGS["other"], **{"other": {}}})
    lost = [{**r, "dice": 0.55} for r in cohort(8)]
    assert advice(Numbers(lost), SETTINGS).startswith("No variant is better than the linear part alone: Dice 0.600")
    astray = [{**r, "dice": 0.3, "dice_linear": 0.2} for r in cohort(8)]
    sentence = advice(Numbers(astray), SETTINGS)
    assert sentence.startswith("No variant is better than the images as they lie: Dice 0.500")
    assert "linear part goes wrong (0.200)" in sentence and "start=none" in sentence
    similar = [row("p", "mind", nmi=1.3, nmi_before=1.1)]
    assert "no proof" in advice(Numbers(similar), SETTINGS)


def test_tables_hold_the_numbers_and_latex_is_sound(tmp_path):
    rows = [{**r, "task": "a_b" if n % 4 < 2 else "c"} for n, r in enumerate(cohort(20))]
    numbers = Numbers(rows)
    write_summaries(numbers, tmp_path)
    with (tmp_path / "summary.csv").open(encoding="utf-8", newline="") as file:
        summary = {(r["task"], r["variant"], r["metric"]): r for r in csv.DictReader(file)}
    values = [r["dice"] for r in rows if r["variant"] == "mind" and r["task"] == "c"]
    assert float(summary["c", "mind", "dice"]["mean"]) == pytest.approx(np.mean(values))
    assert summary["all", "as the images lie", "dice"]["mean"] == "0.5"
    assert "other,mind,20," in (tmp_path / "tests.csv").read_text(encoding="utf-8")
    text = latex(numbers)
    widths = {len(re.findall(r"(?<!\\)&", line)) for line in text.splitlines() if "&" in line}
    assert widths == {text.split("{l")[1].index("}")}, "every row has as many cells as the table has columns"
    assert "a\\_b" in text and text.count("\\mathbf") >= 3 and "10 & 20" not in text
    assert escaped("100 % of a_b & c") == r"100 \% of a\_b \& c"


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert "src" not in given or tag in ("img",)
        self.sources += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_offline_page_with_the_worst_first(tmp_path):
    rows = [*cohort(12), failed("p99", "other"), row("p99", "mind", dice=0.1)]
    worst = min((r for r in rows[:24] if r["variant"] == "other"), key=lambda r: r["dice"])["id"]
    for r in rows:
        if r["status"] == "done":
            place = tmp_path / "pairs" / r["folder"]
            place.mkdir(parents=True)
            (place / PICTURE).write_bytes(b"\xff\xd8picture of " + r["folder"].encode())
    (tmp_path / "pairs" / worst / "other" / "report.html").write_text("its report")
    variants = [Variant(name, name, settings) for name, settings in SETTINGS.items()]
    write_report(rows, variants, tmp_path, "Fälle & <mehr>")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Links()
    parser.feed(page)
    text = " ".join(parser.text)
    assert all(source.startswith("data:image/") for source in parser.sources)
    assert parser.links and set(parser.links) == {f"pairs/{worst}/other/report.html"}
    assert all((tmp_path / link).is_file() for link in parser.links)
    assert "Fälle & <mehr>" in text and "It <broke>." in text and advice(Numbers(rows), SETTINGS) in text
    assert not re.search(r"https?://|@import|url\(", page), "nothing is fetched"
    proven = {c.metric for c in Numbers(rows).comparisons() if c.p_holm < 0.05}
    assert proven == {"dice"} and page.count('<td class="n best">') == 1 + len(proven), "the best Dice, and its test"
    cases = re.findall(r'<div class="case">\s*<figcaption><b>(\w+)</b>', page)
    order = sorted((r for r in rows[:24] if r["variant"] == "other"), key=lambda r: r["dice"])
    assert cases == [r["id"] for r in order[:8]]


def test_a_report_without_any_result_still_says_why(tmp_path):
    write_report([failed("a", v.name) for v in VARIANTS], VARIANTS, tmp_path, "Nothing")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "It &lt;broke&gt;." in page and "nothing to advise" in page
