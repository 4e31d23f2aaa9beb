"""The networks that a report compares with lie within what the calibration measured; where they do not, it says so."""

from dataclasses import replace
from pathlib import Path

import pytest
import scripted_device as device
from scripted_device import scripted_device
from torch import nn
from whole_run import do, options, rows

from htas.cost.tables import TableCost
from htas.files import read_record
from htas.graph import Arch, resize
from htas.graph.layer import Layer
from htas.report import read
from htas.run import keys, run
from htas.run import rows as run_rows
from htas.run.controls import candidates, ends, of_one_stage
from htas.run.rows import NetworksRecord
from htas.run.run import Run

FLOOR = 4
"""Channels below which a layer gets no faster."""
OUTSIDE = "The prediction lies outside the measured widths: 3 of 9 layers are narrower, and count as the narrowest."


def seconds(case: Layer | nn.Module) -> float:
    """A network takes what its layers with weights take, each by its channels, and 0.1 ms."""
    if isinstance(case, Layer):
        return _seconds(case.inputs, case.outputs) if case.macs else 1e-9
    convs = [each for each in case.modules() if isinstance(each, nn.Conv2d)]
    heads = [each for each in case.modules() if isinstance(each, nn.Linear)]
    widths = [(each.in_channels, each.out_channels) for each in convs]
    return 1e-4 + sum(_seconds(*each) for each in [*widths, *((each.in_features, each.out_features) for each in heads)])


def _seconds(inputs: int, outputs: int) -> float:
    return 1e-5 + 1e-6 * max(FLOOR, inputs) * max(FLOOR, outputs)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the planted device, up to its calibration; the narrowest choice of its space is 0.3 of a base width."""
    folder, config = tmp_path_factory.mktemp("runs") / "flat", options("design.spaces=tas", "calibrate.networks=24")
    with scripted_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "seconds", seconds)
        job = run.open_run(config, folder)
        for stage in ("survey", "design", "calibrate"):
            do(stage, config, folder)
    return job


def test_every_control_is_predicted_from_what_was_measured(calibrated: Run) -> None:
    for control in candidates(calibrated):
        assert not calibrated.calibrated.remark(control.arch)
        took = seconds(resize(calibrated.network, control.arch))
        assert calibrated.calibrated.cost(control.arch) == pytest.approx(took, rel=0.12), control.name


def test_the_calibration_measures_the_ends_of_all_controls(calibrated: Run) -> None:
    base = calibrated.network.base
    narrowest, widest, shallowest = ends(calibrated)
    assert narrowest.widths == {name: site.near(site.base / 16) for name, site in calibrated.network.widths.items()}
    assert widest.widths == {name: 2 * width for name, width in base.widths.items()}
    assert shallowest == Arch(base.widths, dict.fromkeys(base.depths, 1))
    archs = [each.arch for each in calibrated.costs.calibration().networks]
    assert archs[:4] == [base, narrowest, widest, shallowest] and len(archs) <= 24


def test_networks_with_one_stage_narrowed_are_as_fast_as_the_searched_one_and_the_richest_is_last(
    calibrated: Run,
) -> None:
    network, cost = calibrated.network, calibrated.calibrated.cost
    base = network.base
    searched = Arch({name: network.sites[name].near(0.75 * width) for name, width in base.widths.items()}, base.depths)
    controls = of_one_stage(calibrated, searched)
    sizes = {each.name.split()[1] for each in controls}
    assert sizes and all(cost(each.arch) <= 1.02 * cost(searched) for each in controls)
    for control in controls:
        narrower = {site for site, width in control.arch.widths.items() if width != base.widths[site]}
        size = control.name.split()[1]
        made = {
            segment.site
            for use in network.uses(base)
            for segment in use.outputs
            if "x".join(map(str, use.layer.size)) == size
        }
        assert narrower and narrower <= made and control.arch.depths == base.depths
    richness = [network.macs(each.arch) * network.params(each.arch) for each in controls]
    assert richness == sorted(richness)
    assert not of_one_stage(
        calibrated, Arch({name: site.near(1) for name, site in network.widths.items()}, base.depths)
    )


def test_a_network_beyond_all_controls_has_a_remark_in_its_row(calibrated: Run) -> None:
    base = calibrated.network.base
    wide = Arch({name: 3 * width for name, width in base.widths.items()}, base.depths)
    row = run_rows.new_row(calibrated, "wide", wide, space="-", strategy="-", cost="-")
    inside = run_rows.predicted(calibrated, replace(row, arch=base))
    assert (inside.outside, inside.predicted_note) == ("", "")
    outside = run_rows.predicted(calibrated, row)
    assert outside.predicted == calibrated.calibrated.cost(wide)
    assert outside.outside.startswith("The prediction lies outside the measured widths: ")
    assert outside.predicted_note == "outside the measured widths"


def test_measure_and_report_say_which_predictions_lie_outside(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, row = next((name, row) for name, row in rows(copied).items() if name.startswith("uniform"))
    monkeypatch.setattr(TableCost, "remark", lambda cost, other: OUTSIDE if other == row.arch else "")
    with scripted_device():
        do("measure", options(), copied, again=True)
        do("report", options(), copied, again=True)
    assert f"measure: {name}: {OUTSIDE}" in capsys.readouterr().err
    results = read_record(copied / "measure.json", NetworksRecord).results
    assert [row.name for row in results if row.outside] == [name]
    assert [row.outside for row in read(copied).results if row.outside] == [OUTSIDE]
    text = (copied / "report.md").read_text()
    assert text.count("(outside the measured widths)") == 1 and text.count(OUTSIDE) == 1


def test_other_controls_are_another_calibration(calibrated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.calibrate(calibrated)
    monkeypatch.setattr(keys, "STEPS", 8)
    assert keys.calibrate(calibrated) != before
