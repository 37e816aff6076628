"""Checkpoints that survive a kill, a full disk and a flipped bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.atomic_files import UNFINISHED, AtomicFileBackend, use_atomic_writes
from mldr_kd_mm.utils.checkpoint import has_training_state, load_checkpoint, use_safe_loading
from mldr_kd_mm.utils.dist import raise_on_all_ranks, run_on_main_process
from mldr_kd_mm.utils.errors import ConfigError

_INTERIM = 'interim_ckpt'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with which there is a whole checkpoint at any time.

    - A checkpoint is written under another name, flushed to the disk and then renamed, and so is
      ``last_checkpoint``; only then are older ones removed, best ones too.
    - ``resume=True`` goes on from the newest checkpoint that can be read in full; one that cannot
      is named in the log.
    - What cannot be written, on a full disk for instance, ends all processes with one line, and
      the checkpoints before it stay.
    - Whatever mmengine loads runs no code of the file's.

    Checkpoints that are directories (DeepSpeed, FSDP's ``local``) and remote ones are written as
    mmengine writes them. Its arguments are those of mmengine's hook.
    """

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint that a run with ``resume=True`` goes on from."""
        use_safe_loading()
        if runner._resume and runner._load_from is None and not runner._has_loaded:
            runner._load_from = run_on_main_process(lambda: newest_checkpoint(runner))

    def before_train(self, runner: Runner) -> None:
        """Set up the paths, and sweep up what a kill has left half written."""
        use_atomic_writes()
        super().before_train(runner)
        self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
        if is_main_process() and isinstance(self.file_backend, AtomicFileBackend):
            for path in Path(self.out_dir).glob(f'*.pth{UNFINISHED}'):
                path.unlink()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Have the numbers of epoch and iteration right under a FlexibleRunner, too."""
        # It counts one too many where a checkpoint is saved again after validation.
        checkpoint['meta'].update(self._progress)

    def save_now(self, runner: Runner) -> str:
        """Save after an iteration, beside the checkpoints that are due.

        The next checkpoint that is due takes its place.

        Args:
            runner: The runner, in ``after_train_iter``.

        Returns:
            The path of the checkpoint.
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
        # mmengine removes the old best checkpoint before it writes the new one.
        backend = self.file_backend
        self.file_backend = _RemovesLater(backend)
        try:
            self._progress = dict(epoch=runner.epoch, iter=runner.iter)
            with self._explained(self.last_ckpt):
                super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        kept = {getattr(self, 'best_ckpt_path', None), *self._several_best().values()}
        self._remove(path for path in outdated if path not in kept)

    def _several_best(self) -> dict[str, str]:
        return getattr(self, 'best_ckpt_path_dict', None) or {}

    def _write(self, runner: Runner, name: str, meta: dict, by_epoch: bool) -> None:
        previous = self.last_ckpt
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        self._progress = dict(meta)
        with self._explained(previous):
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
    def _explained(self, previous: str | None) -> Iterator[None]:
        """Turn what the disk refuses into one line, in all processes."""
        with raise_on_all_ranks():
            try:
                yield
            except OSError as error:
                there = f'{previous} is whole' if previous else 'there is none before it'
                raise ConfigError(
                    f'default_hooks.checkpoint: {self.out_dir}: a checkpoint cannot be written: '
                    f'{error.strerror or error}; {there}'
                ) from error

    def _remove(self, paths: Sequence[str]) -> None:
        if not is_main_process():
            return
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)


class _RemovesLater:
    """A file backend that notes what it is told to remove."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove


def newest_checkpoint(runner: Runner) -> str | None:
    """Find the newest checkpoint of a run that is whole, and name in the log those that are not.

    Args:
        runner: The runner, of which the work directory is searched.

    Returns:
        The path, or None if there is no checkpoint at all.

    Raises:
        ConfigError: If there are checkpoints and none can be read.
    """
    broken = 0
    for path in _candidates(Path(runner.work_dir)):
        if path.is_dir():
            return str(path)
        try:
            content = load_checkpoint(str(path), 'resume')
        except (ConfigError, FileNotFoundError) as error:
            runner.logger.warning(f'{error}: looking for the checkpoint before it')
            broken += 1
        else:
            if has_training_state(content):
                return str(path)
    if broken:
        raise ConfigError(
            f'resume: none of the {broken} checkpoints of {runner.work_dir} can be read: '
            'remove them and last_checkpoint to begin anew'
        )
    return None


def _candidates(work_dir: Path) -> list[Path]:
    """The checkpoint that ``last_checkpoint`` names, then all others, the newest first."""
    note = work_dir / 'last_checkpoint'
    named = [Path(note.read_text().strip())] if note.is_file() else []
    folders = {work_dir.resolve(), *(path.resolve().parent for path in named)}
    found = [
        path
        for folder in folders
        for path in folder.glob('*.pth')
        # Of the best ones there is no state of the optimizer.
        if not path.name.startswith('best_')
    ]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    last = [path.resolve() for path in named]
    return [*last, *(path for path in found if path not in last)]
