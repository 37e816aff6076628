"""Checkpoints that survive a killed process, a full disk and a flipped bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mldr_kd_mm.engine.work_dir import lock_work_dir, unlock_work_dir
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.atomic_files import UNFINISHED, AtomicFileBackend, use_atomic_writes
from mldr_kd_mm.utils.checkpoint import has_training_state, load_checkpoint, use_safe_loading
from mldr_kd_mm.utils.dist import raise_on_all_ranks, run_on_main_process
from mldr_kd_mm.utils.errors import ConfigError

_INTERIM = 'interim_ckpt'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with atomic writes, so that a complete checkpoint always exists.

    - A checkpoint is written under another name, flushed to disk and renamed. The same holds for
      ``last_checkpoint``. Older checkpoints, including the previous best, are removed afterwards.
    - ``resume=True`` continues from the newest checkpoint that can be read in full. Damaged ones
      are named in the log.
    - If a checkpoint cannot be written, for example because the disk is full, all ranks end with an
      error of one line. Earlier checkpoints are kept.
    - Loading a checkpoint never executes code from the file.
    - While a run is training, its main process holds a lock on the work directory. A second run
      there ends with an error of one line.

    Checkpoints that are directories (DeepSpeed, FSDP's ``local``) and remote checkpoints are
    written by mmengine's code. The arguments are those of mmengine's hook.
    """

    def before_run(self, runner: Runner) -> None:
        """Find the checkpoint that a run with ``resume=True`` continues from."""
        use_safe_loading()
        if runner._resume and runner._load_from is None and not runner._has_loaded:
            runner._load_from = run_on_main_process(lambda: find_latest_checkpoint(runner))

    def before_train(self, runner: Runner) -> None:
        """Set up the paths and remove incomplete files that a killed run has left.

        Raises:
            ConfigError: Another process is training in the work directory. Raised on all ranks.
        """
        self._has_locked = run_on_main_process(lambda: lock_work_dir(runner.work_dir))
        use_atomic_writes()
        super().before_train(runner)
        self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
        if is_main_process() and isinstance(self.file_backend, AtomicFileBackend):
            for name in ('*.pth', 'last_checkpoint'):
                for path in Path(self.out_dir).glob(f'{name}*{UNFINISHED}'):
                    path.unlink()

    def after_run(self, runner: Runner) -> None:
        """Let other processes train in the work directory."""
        if is_main_process() and getattr(self, '_has_locked', False):
            self._has_locked = False
            unlock_work_dir(runner.work_dir)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Correct the epoch and iteration of a FlexibleRunner."""
        # A FlexibleRunner counts one too many if a checkpoint is saved again after validation.
        checkpoint['meta'].update(self._progress)

    def save_now(self, runner: Runner) -> str:
        """Save an interim checkpoint after an iteration.

        The next regular checkpoint replaces it.

        Args:
            runner: The runner, during ``after_train_iter``.

        Returns:
            Path of the checkpoint.
        """
        iteration = runner.iter + 1
        name = f'iter_{iteration}.pth'
        runner.message_hub.update_info(_INTERIM, self.file_backend.join_path(self.out_dir, name))
        self._write(runner, name, dict(epoch=runner.epoch, iter=iteration), by_epoch=False)
        return self.last_ckpt

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = [runner.message_hub.runtime_info.pop(_INTERIM, None)]
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                oldest = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                outdated.append(self.file_backend.join_path(self.out_dir, oldest))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self._write(runner, name, meta, self.by_epoch)
        self._remove(path for path in outdated if path not in (None, self.last_ckpt))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        # mmengine would remove the old best checkpoint before it writes the new one.
        backend = self.file_backend
        self.file_backend = _DeferredRemoval(backend)
        try:
            self._progress = dict(epoch=runner.epoch, iter=runner.iter)
            with self._write_errors_on_all_ranks(self.last_ckpt):
                super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        kept = {getattr(self, 'best_ckpt_path', None), *self._best_paths().values()}
        self._remove(path for path in outdated if path not in kept)

    def _best_paths(self) -> dict[str, str]:
        return getattr(self, 'best_ckpt_path_dict', None) or {}

    def _write(self, runner: Runner, name: str, meta: dict, by_epoch: bool) -> None:
        previous = self.last_ckpt
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        self._progress = dict(meta)
        with self._write_errors_on_all_ranks(previous):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                AtomicFileBackend().put_text(path, Path(runner.work_dir, 'last_checkpoint'))
        self.last_ckpt = path

    @contextmanager
    def _write_errors_on_all_ranks(self, previous: str | None) -> Iterator[None]:
        """Raise a failed write as a ConfigError of one line, on all ranks."""
        with raise_on_all_ranks():
            try:
                yield
            except OSError as error:
                kept = f'{previous} is complete' if previous else 'there is no earlier one'
                raise ConfigError(
                    f'default_hooks.checkpoint: {self.out_dir}: a checkpoint cannot be written: '
                    f'{error.strerror or error}; {kept}'
                ) from error

    def _remove(self, paths: Sequence[str]) -> None:
        if not is_main_process():
            return
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)


class _DeferredRemoval:
    """File backend that collects the paths to remove instead of removing them."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove


def find_latest_checkpoint(runner: Runner) -> str | None:
    """Find the newest complete checkpoint in a run's work directory.

    Damaged checkpoints are named in the log.

    Args:
        runner: The runner.

    Returns:
        The path, or None if there is no checkpoint.

    Raises:
        ConfigError: There are checkpoints, but none can be read.
    """
    broken = 0
    for path in _list_checkpoints(Path(runner.work_dir)):
        if path.is_dir():
            return str(path)
        try:
            content = load_checkpoint(str(path), 'resume')
        except ConfigError as error:
            runner.logger.warning(f'{error}; trying the checkpoint before it')
            broken += 1
        else:
            if has_training_state(content):
                return str(path)
    if broken:
        raise ConfigError(
            f'resume: none of the {broken} checkpoints of {runner.work_dir} can be read; '
            'remove them and last_checkpoint to start from the beginning'
        )
    return None


def _list_checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoint named in ``last_checkpoint``, then all others from new to old."""
    note = work_dir / 'last_checkpoint'
    named = [Path(note.read_text().strip())] if note.is_file() else []
    folders = {work_dir.resolve(), *(path.resolve().parent for path in named)}
    found = [
        path
        for folder in folders
        for path in folder.glob('*.pth')
        # The best checkpoints have no optimizer state.
        if not path.name.startswith('best_')
    ]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    last = [path.resolve() for path in named]
    return [*last, *(path for path in found if path not in last)]
