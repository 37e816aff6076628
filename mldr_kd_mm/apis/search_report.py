"""The report of a search: a table and Optuna's plots."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import optuna
from matplotlib import pyplot as plt
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from mldr_kd_mm.apis.search_space import short
from mldr_kd_mm.apis.study import retried
from mldr_kd_mm.utils.outputs import write_output

_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def write_report(
    studies: Mapping[str, optuna.Study],
    root: Path,
    choices: Mapping[str, str],
    held_out: float,
    say: Callable[[str], None],
) -> str:
    """Write ``search.md`` with a table of all methods and the plots of each.

    Args:
        studies: Method -> its study.
        root: The work directory of the search.
        choices: Names of pair, sampler and pruner.
        held_out: Fraction that was held out.
        say: See :func:`~mldr_kd_mm.utils.outputs.write_output`.

    Returns:
        The text up to the plots.
    """
    lines = [
        f'# Search: {choices["pair"]}',
        '',
        f'Top-1 accuracy after the last epoch, in %, on the held-out part ({held_out:.0%}) of the',
        'training set. The best accuracy of several trials is biased upwards: to compare methods,',
        'train the best configs with several seeds and test them. "start" is the first trial with',
        'the values of the config; empty if it was pruned, or if a range excludes one of them.',
        f'Sampler {choices["sampler"]}, pruner {choices["pruner"]}.',
        '',
        '| method | best | start | completed | pruned | failed | config |',
        '|:--|--:|--:|--:|--:|--:|:--|',
        *(_row(method, study, root) for method, study in studies.items()),
        '',
        'Best values:',
        '',
        *(_best_values(method, study) for method, study in studies.items() if _has_best(study)),
        '',
    ]
    table = '\n'.join(lines)
    for method, study in studies.items():
        pictures = _draw(method, study, root / 'plots', say)
        links = [f'![{path.stem}](plots/{path.name})' for path in pictures]
        lines += [f'## {method}', '', *links, '']
    write_output(root / 'search.md', '\n'.join(lines), say)
    return table


def _row(method: str, study: optuna.Study, root: Path) -> str:
    is_written = (root / 'best' / f'{method}.py').is_file()
    counts = [str(len(study.get_trials(deepcopy=False, states=(state,)))) for state in _STATES]
    starts = map(_value_of_start, study.get_trials(deepcopy=False))
    start = next((value for value in starts if value is not None), None)
    cells = [
        method,
        f'{study.best_value:.2f}' if _has_best(study) else '',
        '' if start is None else f'{start:.2f}',
        *counts,
        f'`best/{method}.py`' if is_written else '',
    ]
    return f'| {" | ".join(cells)} |'


def _value_of_start(frozen: FrozenTrial) -> float | None:
    """Return the accuracy of the first trial or its retry, with the values of the config."""
    is_first = frozen.number == 0 or retried(frozen) == 0
    is_whole = frozen.system_attrs.get('fixed_params') == frozen.params
    return frozen.value if is_first and is_whole else None


def _has_best(study: optuna.Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _best_values(method: str, study: optuna.Study) -> str:
    values = (f'`{field}` {short(value)}' for field, value in study.best_params.items())
    return f'- {method}: {", ".join(values)}'


def _draw(method: str, study: optuna.Study, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Draw the history and, if the completed trials differ, the importance of the fields."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    drawings: dict[str, Callable[[], object]] = {}
    if completed:
        drawings['history'] = lambda: plots.plot_optimization_history(study)
        drawings['epochs'] = lambda: plots.plot_intermediate_values(study)
    if len({trial.value for trial in completed}) > 1:
        evaluator = PedAnovaImportanceEvaluator()
        drawings['importance'] = lambda: plots.plot_param_importances(study, evaluator=evaluator)
    paths = []
    for name, draw in drawings.items():
        with mpl.rc_context():  # Optuna changes the style
            plt.switch_backend('Agg')
            figure, picture = draw().figure, io.BytesIO()
            figure.savefig(picture, dpi=120, bbox_inches='tight')
            plt.close(figure)
        paths.append(folder / f'{method}_{name}.png')
        write_output(paths[-1], picture.getvalue(), say)
    return paths
