"""Record named tensors of a model during one forward pass."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.taps.layout import tensors_of
from mldr_kd_mm.models.taps.stages import INPUT, STAGES, feature_tap, logits_tap, stage_taps
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, named

_KNOWN = {'logits': logits_tap, 'feature': feature_tap}


@MODELS.register_module()
class FeatureRecorder:
    """Record outputs of a model's modules by name.

    ::

        recorder = FeatureRecorder(taps=dict(stem='backbone.conv1'))
        with recorder(model) as record:
            model(images)
        record['stem']

    Hooks are attached when the ``with`` begins and removed when it ends. The recorder leaves
    nothing in the model, its copies or its checkpoints, and keeps no tensor of a forward pass.

    Args:
        taps: Name -> dotted path of the module whose output is recorded. The suffix ``:input``
            records the module's first input instead, ``:1`` the second of several output tensors.
            ``'stages'`` finds ``stage1`` ... ``stage4`` of the first model that is recorded, see
            :func:`mldr_kd_mm.models.taps.stages.stage_taps`. ``logits`` and ``feature`` (the
            penultimate feature) are always available.

    Raises:
        ConfigError: If ``taps`` is invalid.
    """

    def __init__(self, taps: Mapping[str, str] | str = 'stages') -> None:
        is_dict = isinstance(taps, Mapping) and all(
            isinstance(text, str) for item in taps.items() for text in item
        )
        if taps != 'stages' and not is_dict:
            raise ConfigError(
                f"taps={taps!r}: must be 'stages' or a dict of name -> dotted module path"
            )
        self.taps = taps if taps == 'stages' else dict(taps)
        # Taps that were found in the model; ``taps`` takes precedence.
        self.found: dict[str, str] = {}
        for name, path in taps.items() if is_dict else ():
            if not name.isprintable() or not name:
                raise ConfigError(f'taps: {name!r}={path!r}: the name must be printable text')
            if not re.fullmatch(r'[^:]*(:input|:\d+)?', path):
                raise ConfigError(
                    f'taps: {name}={path!r}: the suffix of a module path must be :input, or the '
                    'number of one of several tensors, such as :0'
                )

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can be recorded."""
        configured = STAGES if self.taps == 'stages' else tuple(self.taps)
        return tuple(dict.fromkeys((*_KNOWN, *self.found, *configured)))

    @property
    def configured(self) -> tuple[str, ...]:
        """The names that the config gives; none before ``taps='stages'`` is replaced."""
        return () if self.taps == 'stages' else tuple(self.taps)

    def find_stages(self, model: nn.Module, input_size: Sequence[int] | None = None) -> None:
        """Replace ``taps='stages'`` by the taps of a model's stages; keep a dict of taps.

        Args:
            model: The model.
            input_size: (3, H, W) of its images. None: the size that its config fixes, or 224 x 224.

        Raises:
            ConfigError: If no stages are found.
        """
        if self.taps == 'stages':
            self.taps = stage_taps(model, input_size)

    @contextmanager
    def __call__(
        self, model: nn.Module, names: Collection[str] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Record what the model computes inside the ``with``.

        Args:
            model: The model that runs inside the ``with``.
            names: Tensors to record. None: all configured taps.

        Yields:
            Name -> tensor of the module's last call, filled while the model runs.

        Raises:
            ConfigError: If a name is unknown, or its module does not exist, does not run or does
                not give one tensor.
            RuntimeError: If a recorded tensor was changed in place before the ``with`` ended.
        """
        paths = self._paths(model, names)
        record: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        handles = []
        try:
            for name, path in paths.items():
                handles.append(_attach(model, name, path, record, versions))
            yield record
        finally:
            for handle in handles:
                handle.remove()
        for name, path in paths.items():
            if name not in record:
                raise ConfigError(
                    f'taps: {name}={path!r} did not run in the forward pass; {_near(model, path)}'
                )
            if name in versions and record[name]._version != versions[name]:
                raise RuntimeError(
                    f'taps: {name}={path!r} was changed in place after it was recorded; tap the '
                    'next module'
                )

    def _paths(self, model: nn.Module, names: Collection[str] | None) -> dict[str, str]:
        if names is None or set(names) & set(STAGES):
            self.find_stages(model)
        taps = {} if self.taps == 'stages' else self.taps
        if names is None:
            return taps
        taps = self.found | taps
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ConfigError(f'unknown tensor {unknown[0]!r}; available: {", ".join(self.names)}')
        return {name: taps[name] if name in taps else _KNOWN[name](model) for name in names}


def build_recorder(config: dict | None, field: str) -> FeatureRecorder:
    """Build a recorder from its config.

    Args:
        config: Config of a :class:`FeatureRecorder`. None: its defaults.
        field: Name of the config's field, for the errors.

    Raises:
        ConfigError: If ``config`` is not the config of a recorder.
    """
    with named(field):
        recorder = MODELS.build(config or dict(type='FeatureRecorder'))
    if not isinstance(recorder, FeatureRecorder):
        raise ConfigError(f'{field}={config!r}: must be the config of a FeatureRecorder')
    return recorder


# torch.compile traces the hook, but need not trace how it is attached.
@torch.compiler.disable
def _attach(model, name, path, record, versions):
    """Hook the module at a path so that it writes to the record."""
    module_path, _, item = path.partition(':')
    try:
        module = model.get_submodule(module_path)
    except AttributeError:
        raise ConfigError(
            f'taps: {name}={path!r} is not a module of {type(model).__name__}; {_near(model, path)}'
        ) from None

    needs_gradients = torch.is_grad_enabled()

    def keep(value) -> None:
        if needs_gradients and not torch.is_grad_enabled():
            raise ConfigError(
                f'taps: {name}={path!r} runs without gradients, as inside a module with activation '
                'checkpointing, so its losses would not train the student; tap that module itself, '
                'or leave it out of activation_checkpointing'
            )
        given = tensors_of(value)
        wanted = given[int(item) : int(item) + 1] if item.isdigit() else given
        if len(wanted) != 1:
            raise ConfigError(
                f'taps: {name}={path!r} gives {_describe(value, given)}: must be one tensor, or '
                f"one of several, as in '{module_path}:0'"
            )
        record[name] = wanted[0]
        # Compiled code and inference tensors have no versions.
        if not torch.compiler.is_compiling() and not wanted[0].is_inference():
            versions[name] = wanted[0]._version

    if path.endswith(INPUT):
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: keep([*args, *kwargs.values()][0]), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, args, output: keep(output))


def _describe(value, tensors) -> str:
    if not tensors:
        return f'a {type(value).__name__}'
    return f'{len(tensors)} tensors' if len(tensors) > 1 else 'one tensor'


def _near(model: nn.Module, path: str) -> str:
    paths = [name for name, _ in model.named_modules() if name]
    near = get_close_matches(path.partition(':')[0], paths, n=4, cutoff=0.5)
    return f'near: {", ".join(near or paths[:4])}'
