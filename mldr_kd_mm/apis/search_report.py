"""The report of a search: a table and Optuna's plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import optuna
from matplotlib import pyplot as plt
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from mldr_kd_mm.apis.search_space import short
from mldr_kd_mm.apis.trial import write_text

_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def write_report(
    studies: Mapping[str, optuna.Study],
    best: Mapping[str, object],
    root: Path,
    choices: Mapping[str, str],
    held_out: float,
) -> None:
    """Write ``search.md`` with a table of all methods and the plots of each.

    Args:
        studies: Method -> its study.
        best: The methods with a completed trial.
        root: The work directory of the search.
        choices: Names of pair, sampler and pruner.
        held_out: Fraction that was held out.
    """
    lines = [
        f'# Search: {choices["pair"]}',
        '',
        f'Top-1 accuracy after the last epoch, in %, on the held-out part ({held_out:.0%}) of the',
        'training set. The best accuracy of several trials is biased upwards: to compare methods,',
        'train the best configs with several seeds and test them. "start" is the first trial,',
        'with the values of the config.',
        f'Sampler {choices["sampler"]}, pruner {choices["pruner"]}.',
        '',
        '| method | best | start | completed | pruned | failed | best values | config |',
        '|:--|--:|--:|--:|--:|--:|:--|:--|',
        *(_row(method, study, method in best) for method, study in studies.items()),
        '',
    ]
    for method, study in studies.items():
        pictures = _draw(method, study, root / 'plots')
        links = [f'![{path.stem}](plots/{path.name})' for path in pictures]
        lines += [f'## {method}', '', *links, '']
    write_text(root / 'search.md', '\n'.join(lines))


def _row(method: str, study: optuna.Study, has_best: bool) -> str:
    counts = [str(len(study.get_trials(deepcopy=False, states=(state,)))) for state in _STATES]
    start = study.trials[0].value if study.trials[0].state == TrialState.COMPLETE else None
    values = study.best_params.items() if has_best else ()
    cells = [
        method,
        f'{study.best_value:.2f}' if has_best else '',
        '' if start is None else f'{start:.2f}',
        *counts,
        ', '.join(f'`{field}` {short(value)}' for field, value in values),
        f'`best/{method}.py`' if has_best else '',
    ]
    return f'| {" | ".join(cells)} |'


def _draw(method: str, study: optuna.Study, folder: Path) -> list[Path]:
    """Draw the history and, if the completed trials differ, the importance of the fields."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    drawings: dict[str, Callable[[], object]] = {}
    if completed:
        drawings['history'] = lambda: plots.plot_optimization_history(study)
        drawings['epochs'] = lambda: plots.plot_intermediate_values(study)
    if len({trial.value for trial in completed}) > 1:
        evaluator = PedAnovaImportanceEvaluator()
        drawings['importance'] = lambda: plots.plot_param_importances(study, evaluator=evaluator)
    folder.mkdir(exist_ok=True)
    paths = []
    for name, draw in drawings.items():
        with mpl.rc_context():  # Optuna changes the style
            plt.switch_backend('Agg')
            figure = draw().figure
            paths.append(folder / f'{method}_{name}.png')
            figure.savefig(paths[-1], dpi=120, bbox_inches='tight')
            plt.close(figure)
    return paths
