"""Tables and pictures of results."""

import matplotlib.image
import numpy as np

from mldr_kd_mm.apis.results import Result, draw, markdown


def result(method, seed, last, **fields):
    values = dict.fromkeys(Result.__dataclass_fields__, '')
    values |= dict(pair='p', method=method, seed=seed)
    values |= dict(last=last, best=last + 1, teacher=80.0, seconds=90.0, memory=2048)
    values |= dict(finished='2026-01-02T03:04:05', teacher_sha256='abc')
    return Result(**values | fields)


def test_table():
    results = [
        result('scratch', 0, 50.0, teacher=None),
        result('scratch', 1, 52.0, teacher=None),
        result('kd', 0, 53.0, seconds=150.0),
        result('kd', 1, 57.0, memory=3000),
        result('kd', 7, 99.0),
        result('mldr', 1, 58.0, command='python tools/benchmark.py --seeds 8'),
        result('kd', 0, 1.0, pair='q', teacher=None),
    ]
    text = markdown(results)
    table = [line for line in text.splitlines() if line.startswith('| ')][2:]
    assert table[0] == (
        '| scratch | 51.00 ± 1.41 | 52.00 ± 1.41 |  | -4.00 [-16.71, +8.71] | a | 2 | 1.5 '
        '| 2,048 MB |'
    )
    # Seeds 0 and 1 differ from the student alone by 3 and 5; seed 7 has no partner.
    assert table[1] == (
        '| kd | 69.67 ± 25.48 | 70.67 ± 25.48 | +4.00 [-8.71, +16.71] |  | a | 3 | 1.8 | 3,000 MB |'
    )
    assert table[2] == '| mldr | 58.00 | 59.00 | +6.00 | +1.00 | a | 1 | 1.5 | 2,048 MB |'
    header = '| method |'
    assert text.count(header) == 2
    assert 'Teacher: 80.00 %, SHA-256 abc.' in text
    assert 'Teacher: not measured, SHA-256 abc.' in text
    assert text.count('    python tools/benchmark.py --seeds 8\n') == 1
    assert '- date: 2026-01-02\n' in text


def test_picture(tmp_path):
    results = [
        result(method, seed, place * 5 + seed * 2.0, pair=pair)
        for pair in ('p', 'q', 'r')
        for place, method in enumerate(('scratch', 'kd', 'mldr'))
        for seed in range(3)
    ]
    draw(results, tmp_path / 'results.png')
    image = matplotlib.image.imread(tmp_path / 'results.png')[..., :3]
    for panel in np.array_split(image, 3):
        points = panel[..., 2] > panel[..., 0] + 0.3
        assert points.sum() > 9 * 20, 'nine points'
        rows = np.flatnonzero(points.any(1))
        assert np.ptp(rows) > len(panel) / 2, 'the methods fill most of the panel'
