"""Checkpoints that survive a killed process, a full disk and a flipped bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, Runner

from mldr_kd_mm.engine.starting_point import RunDirectory
from mldr_kd_mm.engine.training_state import check_training_state, names_checkpoint
from mldr_kd_mm.engine.work_dir import lock_work_dir, unlock_work_dir
from mldr_kd_mm.models.weights import use_counted_loading
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.atomic_files import UNFINISHED, AtomicFileBackend, use_atomic_writes
from mldr_kd_mm.utils.dist import raise_on_all_ranks, run_on_main_process
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.run_identity import Origin, RunIdentity, fingerprint

_INTERIM = 'interim_ckpt'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with atomic writes, so that a complete checkpoint always exists.

    - A checkpoint is written under another name, flushed to disk and renamed. The same holds for
      ``last_checkpoint``. Older checkpoints, including the previous best, are removed afterwards.
    - ``resume=True`` continues from the newest checkpoint of the same run that can be read in full.
      Damaged ones, and those of other runs, are named in the log.
    - Only checkpoints of the same run are ever removed, and only in its own directory.
    - If a checkpoint cannot be written, for example because the disk is full, all ranks end with an
      error of one line. Earlier checkpoints are kept.
    - Loading a checkpoint never executes code from the file.
    - While a run is training, its main process holds a lock on the work directory. A second run
      there ends with an error of one line.

    Checkpoints that are directories (DeepSpeed, FSDP's ``local``) and remote checkpoints are
    written by mmengine's code. The arguments are those of mmengine's hook.
    """

    identity: RunIdentity | None = None
    """Identity of the run, known from its start on."""
    _resumed_from: str | None = None
    _is_fork = False
    _has_recorded = False

    def before_run(self, runner: Runner) -> None:
        """Find the checkpoint that the run continues from."""
        use_counted_loading()
        if isinstance(runner._train_loop, BaseLoop):  # not in a test
            self.find_start(runner)

    def find_start(self, runner: Runner) -> None:
        """Choose the checkpoint that the run continues from, unless it has been chosen before.

        A FlexibleRunner loads it before the hooks run, so whoever starts one must call this first.

        Args:
            runner: The runner.

        Raises:
            ConfigError: The checkpoint cannot be read, or belongs to another run.
        """
        if self.identity is not None or runner._has_loaded:
            return
        # A FlexibleRunner also accepts a path.
        resume_from = runner._resume if isinstance(runner._resume, str) else runner._load_from
        start = run_on_main_process(
            lambda: RunDirectory(
                runner.work_dir,
                self._checkpoint_dir(runner.work_dir),
                {'.pth', Path(self.filename_tmpl).suffix},
                runner.logger,
            ).find_start(
                fingerprint(runner.cfg, runner.world_size),
                bool(runner._resume),
                resume_from,
                runner.timestamp,
            )
        )
        self.identity, self._resumed_from, self._is_fork = start
        if start.checkpoint is not None:
            runner._resume, runner._load_from = True, start.checkpoint
        elif runner._load_from is None:
            runner._resume = False

    def _checkpoint_dir(self, work_dir: str) -> str:
        """Return the directory of the checkpoints before mmengine has set ``out_dir``."""
        if self.out_dir in (None, work_dir) or '://' in str(self.out_dir):
            return work_dir
        return str(Path(self.out_dir, Path(work_dir).name))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the training state of a checkpoint that the run resumes from.

        Raises:
            ConfigError: A field is missing or has a wrong type.
        """
        if not runner._resume:
            return
        check_training_state(checkpoint, f'resume={str(runner._load_from)!r}')
        saved_with = (checkpoint['meta'].get('run') or {}).get('fingerprint')
        if self.identity is not None and saved_with not in (None, self.identity.fingerprint):
            runner.logger.warning(
                f'resume: {runner._load_from} was saved with other settings, another number of '
                "processes, or other weights in the teacher's file"
            )

    def before_train(self, runner: Runner) -> None:
        """Set up the paths and remove files that a killed run has left.

        Raises:
            ConfigError: Another process is training in the work directory. Raised on all ranks.
        """
        self._has_locked = run_on_main_process(lambda: lock_work_dir(runner.work_dir))
        use_atomic_writes()
        info = runner.message_hub.runtime_info
        kept, outdated = info.pop('keep_ckpt_ids', []), info.pop('outdated_ckpts', [])
        super().before_train(runner)
        self._restore_paths(info)
        if self._is_fork:
            kept, outdated = [], []
        self._outdated = list(outdated)
        self._saved: set[str] = set()  # names of the checkpoints that this process has written
        if self.max_keep_ckpts > 0:
            self._outdated += map(self.filename_tmpl.format, kept[: -self.max_keep_ckpts])
            self.keep_ckpt_ids.extend(kept)
        self._remove_outdated()
        if is_main_process() and isinstance(self.file_backend, AtomicFileBackend):
            for name in ('*.pth', 'last_checkpoint'):
                for path in Path(self.out_dir).glob(f'{name}*{UNFINISHED}'):
                    if path.is_file() or path.is_symlink():
                        path.unlink()

    def after_run(self, runner: Runner) -> None:
        """Let other processes train in the work directory."""
        if is_main_process() and getattr(self, '_has_locked', False):
            self._has_locked = False
            unlock_work_dir(runner.work_dir)

    def _restore_paths(self, info: dict) -> None:
        """Turn the names of checkpoints that were stored in one into paths of this run."""
        for key in filter(names_checkpoint, list(info)):
            name = PurePath(info[key] or '').name
            if self._is_fork or name in ('', '..'):
                del info[key]
            else:
                info[key] = self.file_backend.join_path(self.out_dir, name)
        if self._is_fork:
            # The best checkpoint so far is in the directory of another run.
            for key in [key for key in info if str(key).startswith('best_score')]:
                del info[key]
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = info.get('best_ckpt')
        for key in self._best_paths():
            self.best_ckpt_path_dict[key] = info.get(f'best_ckpt_{key}')
        if self._resumed_from is not None:
            info['last_ckpt'] = self._resumed_from
        self.last_ckpt = info.get('last_ckpt')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the run's identity, and store names instead of paths.

        Also correct the epoch and iteration of a FlexibleRunner.
        """
        # A FlexibleRunner counts one too many if a checkpoint is saved again after validation.
        checkpoint['meta'].update(self._progress)
        if self.identity is not None:
            checkpoint['meta']['run'] = self.identity.to_meta()
        info = checkpoint['message_hub']['runtime_info']
        for key in filter(names_checkpoint, info):
            info[key] = info[key] and PurePath(info[key]).name

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
        interim = runner.message_hub.runtime_info.pop(_INTERIM, None)
        if interim:
            self._outdated.append(PurePath(interim).name)
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self._outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._write(runner, self.filename_tmpl.format(step), meta, self.by_epoch)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        # mmengine would remove the old best checkpoint before it writes the new one.
        backend = self.file_backend
        self.file_backend = _DeferredRemoval(backend, self._outdated)
        previous = self._best_names()
        try:
            self._progress = dict(epoch=runner.epoch, iter=runner.iter)
            with self._write_errors_on_all_ranks(self.last_ckpt):
                super()._save_best_checkpoint(runner, metrics)
            self._saved |= self._best_names() - previous
        finally:
            self.file_backend = backend
        self._remove_outdated()

    def _best_paths(self) -> dict[str, str]:
        return getattr(self, 'best_ckpt_path_dict', None) or {}

    def _best_names(self) -> set[str]:
        """Return the names of the best checkpoints so far."""
        paths = (getattr(self, 'best_ckpt_path', None), *self._best_paths().values())
        return {PurePath(path).name for path in paths if path}

    def _write(self, runner: Runner, name: str, meta: dict, by_epoch: bool) -> None:
        previous = self.last_ckpt
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        # A run that is killed before it has removed these files removes them when it is resumed.
        runner.message_hub.update_info('outdated_ckpts', list(self._outdated))
        self._progress = dict(meta)
        self._record_identity(runner)
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
                if self.identity is not None and Path(path).is_dir():
                    self.identity.write_to_checkpoint(path, self._progress)
                AtomicFileBackend().put_text(path, Path(runner.work_dir, 'last_checkpoint'))
        self.last_ckpt = path
        self._saved.add(name)

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

    def _record_identity(self, runner: Runner) -> None:
        """Let the work directory belong to this run from its first checkpoint on."""
        if self.identity is None or self._has_recorded:
            return
        with self._write_errors_on_all_ranks(self.last_ckpt):
            if is_main_process():
                self.identity.write(runner.work_dir)
        self._has_recorded = True

    def _remove_outdated(self) -> None:
        """Remove the outdated checkpoints that belong to this run."""
        if isinstance(self.file_backend, _DeferredRemoval):
            return  # once all are saved
        kept = self._best_names()
        if self.last_ckpt:
            kept.add(PurePath(self.last_ckpt).name)
        outdated = [name for name in dict.fromkeys(self._outdated) if name not in kept]
        self._outdated.clear()
        if is_main_process():
            for name in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, PurePath(name).name))

    def _remove(self, path: str) -> None:
        if not isinstance(self.file_backend, AtomicFileBackend):
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
        elif os.path.isfile(path) or os.path.isdir(path):
            # Reading a checkpoint takes about a second, so do it only if another process wrote it.
            if PurePath(path).name not in self._saved and not self._owns(path):
                return
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def _owns(self, path: str) -> bool:
        """Return whether a file or directory is an undamaged checkpoint of this run."""
        try:
            origin = Origin.read(path)
        except ConfigError:
            return False
        return origin is not None and self.identity is not None and self.identity.owns(origin)


class _DeferredRemoval:
    """File backend that notes the names of the files to remove instead of removing them."""

    def __init__(self, backend: Any, outdated: list[str]) -> None:
        self._backend = backend
        self._outdated = outdated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._outdated.append(PurePath(path).name)

    rmtree = remove
