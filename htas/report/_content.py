"""What a report says, in order: the answer, networks, picture, searches, curves, doubts, and how to repeat it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from htas.graph.arch import Arch
from htas.report import _blocks as page
from htas.report._course import course
from htas.report._figures import BANDS, accuracy_over_latency, archs, predictions
from htas.report._names import at_the_start, is_searched, network_names, row_names, search_name, space_name
from htas.report.result import Report, Result
from htas.report.summary import answer, base_of, breach, deployed_cell, deployed_heading, figures, marked, with_deployed
from htas.report.survey import ABOUT, curve_doubts, curve_picture
from htas.search.record import EpochRecord, SearchRecord
from htas.text import NONE, duration, listing, percent, plural, quantity, runs, significant

SURPRISE = 0.1
"""Error of a prediction above which there is a doubt."""
EVERYWHERE = 12
"""Curves that are pictures of their own; further ones are drawn by the page alone, which stays small."""


def content(report: Report) -> list[page.Block]:
    """The blocks of a report, from the answer to the configuration."""
    pictures = [curve_picture(number, curve, number > EVERYWHERE) for number, curve in enumerate(report.curves, 1)]
    curves: list[page.Block] = [page.Heading("Latency curves"), ABOUT, *pictures] if pictures else []
    return [
        answer(report),
        *_networks(report),
        *_archs(report),
        *curves,
        *_searches(report),
        *_predictions(report),
        page.Heading("Doubts and remarks"),
        page.points(doubts(report)),
        *_measuring(report),
        *_run(report),
    ]


def _networks(report: Report) -> list[page.Block]:
    batches = {result.target.get("batch") for result in report.results}
    batch = f"ms per batch of {batches.pop()}" if len(batches) == 1 and None not in batches else "ms per batch"
    headings = (
        "network", "accuracy", f"measured, {batch}", "predicted, ms", "predicted / measured", "times as fast as base",
        "multiply-adds", "parameters",
    )  # fmt: skip
    names, base = row_names(report), base_of(report)
    rows = []
    for result in report.results:
        accuracy, measured, predicted, *rest = figures(result, base)
        label = page.Cell(names[result.name], result.name if result.name != names[result.name] else "")
        seconds = result.measured.estimate if result.measured else 0.0
        agreement = page.Cell(NONE if result.predicted is None or not seconds else f"{result.predicted / seconds:.2f}")
        row = (label, accuracy, replace(measured, note=_readings(result)), predicted, agreement, *rest)
        rows.append(with_deployed(report, row, deployed_cell(result)))
    precision = deployed_heading(report)
    about = (
        f"The accuracy {precision} is that of what the runtime runs, read by it on {_test_images(report)}; below it is "
        "its distance from fp32 on the same images, with two standard errors. "
        if precision
        else ""
    )
    return [
        page.Heading("Networks"),
        page.Table(with_deployed(report, headings, precision), rows, headings[:1], marked(report)),
        page.Text(
            f"Accuracy is that of the last epoch on the test split. {about}Measured is the 25th percentile of the "
            "readings of the whole network, each over the machine's level at that moment, \N{PLUS-MINUS SIGN} two "
            "standard errors; below it are the median and minimum of the raw readings. Predicted is the sum of "
            "the measured layers, calibrated against other whole networks (cost.json), before this row was "
            "measured; for the base network it is its latency in the calibration. Layers outside the measured "
            "widths are marked: a narrower one counts as the narrowest, a wider one by a straight line."
        ),
        page.Heading("Accuracy and latency"),
        accuracy_over_latency(report),
    ]


def _test_images(report: Report) -> str:
    """Those that the runtime reads: a device reads some of them, drawn at random."""
    counts = sorted({each.deployed.images for each in report.results if each.deployed})
    if not all(counts):
        return "the test split"
    return f"{' or '.join(f'{count:,}' for count in counts)} images of the test split"


def _readings(result: Result) -> str:
    measured = result.measured
    if measured is None:
        return ""
    middle, least = significant(1e3 * measured.median), significant(1e3 * measured.minimum)
    return f"median {middle}, min {least}, {plural(len(measured.values), 'reading')}"


def _archs(report: Report) -> list[page.Block]:
    """The searched networks next to the base network, and how each network was made."""
    names, labels, base = network_names(report), row_names(report), base_of(report)
    headings = "network", "widths", "depths", "adds", "space", "strategy", "cost", "target", "teacher", "seed"
    rows, details = [], []
    pictures: list[page.Block] = []
    for result in report.results:
        arch, name = result.arch, names[result.name]
        texts = (
            labels[result.name], runs(list(arch.widths.values())), runs(list(arch.depths.values())), result.adds,
            space_name(result.space), result.strategy if result.strategy != "given" else "", result.cost,
            target(result.target), names.get(result.teacher, result.teacher), str(result.seed),
        )  # fmt: skip
        rows.append([page.Cell(text if text not in ("", "-") else NONE) for text in texts])
        facts = (*_by_site(arch), ("recipe", value(result.recipe)), ("versions", value(result.versions)))
        details.append(
            page.Points([(f"{labels[result.name]}, {what}", words) for what, words in facts if words != NONE])
        )
        if is_searched(result) and base and arch.widths.keys() == base.arch.widths.keys():
            blocks = listing(f"{depth} in {site}" for site, depth in arch.depths.items())
            caption = (
                f"{name}: the width of every site, from the image to the classes, and the base network's."
                f"{f' Blocks kept: {blocks}.' if blocks else ''}"
            )
            chart, shows = archs(arch, base.arch, report.blocks), f"Widths of {name} and of the base network"
            pictures.append(page.Picture(f"arch-{len(pictures) + 1}", chart, shows, at_the_start(caption)))
    return [
        page.Heading("The searched networks, layer by layer"),
        *(pictures or [page.Text("No search has finished yet.")]),
        page.Heading("How each network was made"),
        page.Table(headings, rows, headings[:-1], marked(report)),
        page.Fold("Widths and depths by site, recipes and versions", details),
    ]


def target(fields: Mapping[str, Any]) -> str:
    """A target on one line: `cpu onnxruntime fp32, batch 4, threads 2, input 3x32x32`."""
    plain = [str(fields[name]) for name in ("device", "runtime", "precision") if name in fields]
    named = [
        f"{name if name != 'shapes' else 'input' if len(content) == 1 else 'inputs'} {value(content)}"
        for name, content in fields.items()
        if name not in ("device", "runtime", "precision") and content not in ({}, [], (), "", None)
    ]
    return listing([" ".join(plain), *named] if plain else named)


def value(content: Any) -> str:
    """A plain value as people write it: sizes as 3x32x32, mappings as `name value` pairs."""
    if isinstance(content, Mapping):
        return listing(f"{name} {value(inner)}" for name, inner in content.items()) or NONE
    if isinstance(content, list | tuple):
        numbers = bool(content) and all(isinstance(inner, int) for inner in content)
        return ("x" if numbers else ", ").join(value(inner) for inner in content) or NONE
    return NONE if content in (None, "") else str(content)


def _by_site(arch: Arch) -> tuple[tuple[str, str], tuple[str, str]]:
    """Widths and depths with the names of their sites."""
    return ("widths", value(arch.widths)), ("depths", value(arch.depths))


def _searches(report: Report) -> list[page.Block]:
    blocks: list[page.Block] = [page.Heading("Searches")] if report.searches else []
    for number, search in enumerate(report.searches, 1):
        name = search_name(search.space)
        blocks += [page.Text(_verdict(search)), *_limits(search)]
        if search.accuracy is not None:  # else nothing was searched
            caption = "The search has no epochs; only its arch and the random ones are shown."
            if search.epochs:
                caption = f"Course of the {name}. {_ended(search.epochs[-1])}"
            chart = course(search, base_of(report))
            blocks.append(page.Picture(f"search-{number}", chart, f"Course of the {name}", caption))
        blocks.append(page.Fold(f"Arch of the {name}", [page.Points(_by_site(search.arch))]))
    return blocks


def _limits(search: SearchRecord) -> list[page.Block]:
    """Each limit: as the configuration has it, in its unit, and the predicted and measured values."""
    if not search.limits:
        return []
    rows = []
    for limit in search.limits:
        values = [quantity(each, limit.unit) for each in (limit.limit, limit.predicted, limit.measured)]
        noise = f"\N{PLUS-MINUS SIGN} {percent(2 * limit.error, 1)}" if limit.error else ""
        rows.append([*map(page.Cell, (limit.metric, limit.asked, *values)), page.Cell(percent(limit.ratio, 1), noise)])
    headings = ("limit", "configured", "in its unit", "predicted", "measured again", "measured / limit")
    sentences = []
    if search.measured_archs:
        sentences.append(
            f"{plural(search.measured_archs, 'arch')} near the end of the search were measured whole. The result "
            "is measured again, next to the base network, on readings that played no part in proposing it."
        )
    if search.uniform is not None:
        sentences.append(
            f"The uniform network within the limits has {percent(search.uniform)} {search.judge}, the result "
            f"{percent(search.accuracy or 0.0)}."
        )
    return [page.Table(headings, rows, headings[:2]), page.Text(" ".join(sentences))]


def _verdict(search: SearchRecord) -> str:
    words = "has converged" if search.converged else "has not converged"
    options = f"strategy {search.strategy}, cost {search.cost}, seed {search.seed}, {duration(search.seconds)}"
    return f"The {search_name(search.space)} {words}: {search.why} ({options}). {standing(search)}".rstrip()


def standing(search: SearchRecord) -> str:
    """How the resulting arch compares with its random rivals."""
    if search.accuracy is None:
        return ""
    accuracy, judged = percent(search.accuracy), search.judge[0].upper() + search.judge[1:]
    if not search.rivals:
        return f"{judged} its arch has {accuracy} on validation data; no random arch was compared with it."
    middle = percent(median(search.rivals))
    furthest = percent(max(abs(cost - 1) for cost in search.rival_costs), 0)
    count = plural(len(search.rivals), "random arch").replace("archs", f"archs within {furthest} of its latency")
    return (
        f"{judged} its arch has {accuracy} on validation data, better than {search.beaten} of {count} "
        f"(their median {middle})."
    )


def _ended(last: EpochRecord) -> str:
    """The last epoch in words; what the strategy has not is left out."""
    parts = [f"loss {significant(last.train_loss)} in training"]
    if last.validation_loss is not None:
        parts[0] += f" and {significant(last.validation_loss)} in validation"
    if last.validation_accuracy is not None:
        parts.append(f"accuracy {percent(last.validation_accuracy)} (of sampled mixtures)")
    parts.append(f"expected cost {last.expected_cost:.2f}")
    if last.argmax_cost is not None:
        parts[-1] += f" and cost of the most probable arch {last.argmax_cost:.2f}"
    parts[-1] += " of the base"
    if last.temperature is not None:
        parts.append(f"temperature {significant(last.temperature)}")
    if last.top_probability is not None:
        parts.append(f"top probability {last.top_probability:.2f}")
    return f"After {plural(last.epoch, 'epoch')}: {', '.join(parts)}."


def _predictions(report: Report) -> list[page.Block]:
    """How far the cost model is off: on networks outside its fit, and on those of this report."""
    if not report.predictions:
        return []
    off = [abs(each.predicted / each.measured - 1) for each in report.predictions]
    near = listing(f"{percent(sum(o <= band for o in off) / len(off), 0)} within {percent(band, 0)}" for band in BANDS)
    summary = (
        f"{plural(len(off), 'network')} of the calibration, each predicted by a fit without it: "
        f"{percent(sum(off) / len(off), 1)} off in the mean, {percent(max(off), 1)} at worst, {near}. The networks of "
        "this report were predicted before they were measured; where the machine's level changed in between, all are "
        "off alike."
    )
    caption = (
        "Predicted against measured latency, both in logarithms. Errors are at most 5 % between the solid green lines "
        "and at most 10 % between the dashed ones."
    )
    return [
        page.Heading("Predicted and measured"),
        page.Picture("predictions", predictions(report), "Predicted against measured latency", caption),
        page.Text(summary),
    ]


def doubts(report: Report) -> list[tuple[str, str]]:
    """What speaks against the figures, each with its subject: readings, fits, searches, comparisons, remarks."""
    names, base = row_names(report), base_of(report)
    remarks = [("", remark) for remark in report.remarks]
    for result in report.results:
        reasons = [
            *result.remarks,
            *filter(None, [breach(result), result.outside, result.lost]),
            *(result.measured.doubts if result.measured else ()),
            *_surprise(result),
        ]
        if base and base.measured and result.measured:
            if result.measured.survey != base.measured.survey:
                reasons.append(
                    "was not measured in the same interleaved run as the base network; measure both before "
                    "comparing them"
                )
            if result.target != base.target:
                reasons.append(f"was measured for another target than the base network ({target(base.target)})")
        remarks += [(names[result.name], reason) for reason in reasons]
    remarks += curve_doubts(report.curves)
    named = {result.name for result in report.results if result.breaks}
    for search in report.searches:
        subject = search_name(search.space)
        limits = search.limits if search.space not in named else ()
        remarks += [(subject, outcome.excess) for outcome in limits if outcome.excess]
        remarks += [] if search.converged else [(subject, f"not converged: {search.why}")]
    return remarks


def _surprise(result: Result) -> Iterator[str]:
    """That a network takes another time than was foretold within the measured widths."""
    if result.predicted is None or result.measured is None or result.outside:
        return
    off = result.predicted / result.measured.estimate - 1 if result.measured.estimate else 0.0
    if abs(off) > SURPRISE:
        way = "less" if off < 0 else "more"
        yield (
            f"was foretold to take {percent(abs(off), 0)} {way} than it does, so the costs that the search compared "
            "were unsure; calibrate again on a machine that does nothing else"
        )


def _measuring(report: Report) -> list[page.Block]:
    """On what, and how well, latencies were read."""
    read = [(result, result.measured) for result in report.results if result.measured is not None]
    if not read:
        return [page.Heading("How it was measured"), page.Text("Nothing has been measured yet.")]
    first, measured = read[0]
    errors = sorted(each.error / each.estimate for _, each in read)
    facts = {
        "target": target(first.target),
        "readings of each network": len(measured.values),
        **{name: value(content) for name, content in measured.context.items() if name not in first.target},
        "median standard error of a network": percent(errors[len(errors) // 2], 1),
    }
    return [page.Heading("How it was measured"), page.facts_table(facts)]


def _run(report: Report) -> list[page.Block]:
    seeds = sorted({result.seed for result in report.results} | {search.seed for search in report.searches})
    test = f", {report.test_images} test images" if report.test_images else ""
    stages = [(name, duration(seconds)) for name, seconds in report.stages.items()]
    total = [("all stages", duration(sum(report.stages.values())))] if stages else []
    facts = {"data": report.dataset + test, "seeds": listing(map(str, seeds)) or NONE}
    facts |= {name: value(content) for name, content in report.machine.items()}
    return [
        page.Heading("How to repeat it"),
        page.Code(report.command, "sh"),
        page.Heading("Machine and time"),
        page.facts_table(facts),
        *([page.plain_table(("stage", "time"), stages + total)] if stages else []),
        page.Fold("The whole configuration", [page.Code(report.config, "toml")]),
    ]
