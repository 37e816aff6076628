"""Child registries of mmpretrain's, one for each kind of module.

They make every spelling of a ``type`` work without ``custom_imports``: ``Distiller`` and
``mldr_kd_mm.Distiller``, ``ImageClassifier`` and ``mmpretrain.ImageClassifier``, whether the
``default_scope`` of a config is ``mldr_kd_mm`` or ``mmpretrain``.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from mmpretrain import registry as mmpretrain_registry

SCOPE = 'mldr_kd_mm'


class ChildRegistry(Registry):
    """A child of one of mmpretrain's registries.

    mmengine finds a bare name in the registry of the default scope and in its ancestors, never in
    its children. Each class registered here is therefore also registered with the parent, unless
    the parent or one of its own ancestors has another class of that name. There the name keeps its
    meaning, and only under our default scope does it stand for our class.

    Args:
        parent: The registry of mmpretrain that this one extends.
        locations: Modules to import before the first look-up.
    """

    def __init__(self, parent: Registry, *locations: str) -> None:
        super().__init__(
            parent.name,
            parent=parent,
            scope=SCOPE,
            # A look-up here does not import the parent's locations, so they are repeated.
            locations=[*parent._locations, *locations],
        )

    def _register_module(self, module, module_name=None, force=False) -> None:
        super()._register_module(module, module_name, force)
        names = [module_name] if isinstance(module_name, str) else module_name
        for name in names or [module.__name__]:
            if not any(name in registry.module_dict for registry in self._ancestors()):
                self.parent._register_module(module, name)

    def _ancestors(self) -> Iterator[Registry]:
        registry = self.parent
        while registry is not None:
            yield registry
            registry = registry.parent


RUNNERS = ChildRegistry(mmpretrain_registry.RUNNERS)
RUNNER_CONSTRUCTORS = ChildRegistry(mmpretrain_registry.RUNNER_CONSTRUCTORS)
# mmpretrain has no registry for strategies.
STRATEGIES = ChildRegistry(mmengine_registry.STRATEGIES, 'mldr_kd_mm.engine.strategies')
LOOPS = ChildRegistry(mmpretrain_registry.LOOPS, 'mldr_kd_mm.engine.knn_loop')
HOOKS = ChildRegistry(mmpretrain_registry.HOOKS, 'mldr_kd_mm.engine.hooks')
LOG_PROCESSORS = ChildRegistry(mmpretrain_registry.LOG_PROCESSORS)
OPTIMIZERS = ChildRegistry(mmpretrain_registry.OPTIMIZERS)
OPTIM_WRAPPERS = ChildRegistry(mmpretrain_registry.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = ChildRegistry(
    mmpretrain_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'mldr_kd_mm.engine.parameter_groups'
)
PARAM_SCHEDULERS = ChildRegistry(mmpretrain_registry.PARAM_SCHEDULERS)
DATASETS = ChildRegistry(mmpretrain_registry.DATASETS, 'mldr_kd_mm.datasets')
DATA_SAMPLERS = ChildRegistry(mmpretrain_registry.DATA_SAMPLERS, 'mldr_kd_mm.datasets')
TRANSFORMS = ChildRegistry(mmpretrain_registry.TRANSFORMS, 'mldr_kd_mm.datasets')
MODELS = ChildRegistry(
    mmpretrain_registry.MODELS,
    'mldr_kd_mm.models.backbones',
    'mldr_kd_mm.models.data_preprocessor',
    'mldr_kd_mm.models.losses',
    'mldr_kd_mm.models.losses.label_smoothing',
    'mldr_kd_mm.models.necks',
    'mldr_kd_mm.models.taps.recorder',
    'mldr_kd_mm.models.distillers.distiller',
)
MODEL_WRAPPERS = ChildRegistry(mmpretrain_registry.MODEL_WRAPPERS)
WEIGHT_INITIALIZERS = ChildRegistry(mmpretrain_registry.WEIGHT_INITIALIZERS)
BATCH_AUGMENTS = ChildRegistry(
    mmpretrain_registry.BATCH_AUGMENTS, 'mldr_kd_mm.models.data_preprocessor'
)
TASK_UTILS = ChildRegistry(mmpretrain_registry.TASK_UTILS)
METRICS = ChildRegistry(mmpretrain_registry.METRICS)
EVALUATORS = ChildRegistry(mmpretrain_registry.EVALUATORS)
TOKENIZER = ChildRegistry(mmpretrain_registry.TOKENIZER)
VISUALIZERS = ChildRegistry(mmpretrain_registry.VISUALIZERS)
VISBACKENDS = ChildRegistry(mmpretrain_registry.VISBACKENDS)
