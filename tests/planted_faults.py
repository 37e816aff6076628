"""Plant faults in a copy of the package, one at a time, and report which test finds each.

Run it by hand after rewriting tests, to check that they still find these faults:

    python tests/planted_faults.py --out planted.txt
    python tests/planted_faults.py --root OTHER_CHECKOUT --only crd,cache

A fault is a snippet of source that occurs once in the package, and its replacement. Several forms
are tried in order, so that one table serves checkouts whose source differs; a fault that fits none
of them is an error, not a miss. Test files are named without their folder.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = 'mldr_kd_mm'
TIMEOUT = 900
"""Seconds after which the tests of one fault are stopped."""
NOT_FOUND = 'NOT FOUND'
TIMED_OUT = 'TIMED OUT'


class Fault(NamedTuple):
    """A mistake that the tests must notice."""

    name: str
    tests: str
    """Test files to run, by name or by the end of their path; unknown ones are skipped."""
    forms: Sequence[tuple[str, str]]
    """Alternative pairs of a source snippet and its replacement."""


FAULTS = [
    # Losses.
    Fault(
        'DFRA: sign in the gradient of the relations',
        'test_relation.py test_dfra.py',
        [
            (
                'gradient = of_student.both.view_as(student) - of_teacher.both',
                'gradient = of_student.both.view_as(student) + of_teacher.both',
            )
        ],
    ),
    Fault(
        'DFRA: sign in the C kernel',
        'test_relation.py test_dfra.py',
        [
            (
                'value[at] + forward[at] / normalizer[at]',
                'value[at] - forward[at] / normalizer[at]',
            )
        ],
    ),
    Fault(
        'DFRA: sample relation over the wrong axis',
        'test_dfra.py test_golden.py',
        [
            ('compare(*(logits.mT for logits in related))', 'compare(*related)'),
            ('compare(student.mT, teacher.mT)', 'compare(student, teacher)'),
            ('[logits.mT for logits in sides]', 'sides'),
        ],
    ),
    Fault(
        'DFRA: gathers the batch along the wrong axis',
        'test_dfra.py',
        [('gather_batch([student, teacher], dim=-2)', 'gather_batch([student, teacher], dim=-1)')],
    ),
    Fault(
        'KD: temperature squared is missing',
        'test_kd.py test_golden.py',
        [
            (
                'values = kl_div(student / self.temperature, teacher / self.temperature)\n'
                '        return self.temperature**2 * values',
                'values = kl_div(student / self.temperature, teacher / self.temperature)\n'
                '        return values',
            )
        ],
    ),
    Fault(
        'KL of the wrong direction',
        'test_common.py test_kd.py',
        [
            (
                '(log_p.exp() * (log_p - log_q)).sum(-1)\n\n',
                '(log_q.exp() * (log_q - log_p)).sum(-1)\n\n',
            )
        ],
    ),
    Fault(
        'gradient flows into the teacher tensor',
        'test_common.py test_all.py',
        [('at_least_float32(teacher.detach())', 'at_least_float32(teacher)')],
    ),
    Fault(
        'losses run under autocast',
        'test_common.py test_all.py',
        [
            (
                'torch.autocast(device.type, enabled=False)',
                'torch.autocast(device.type, enabled=True)',
            )
        ],
    ),
    Fault(
        'gathered batch: gradient not multiplied by the number of ranks',
        'test_common.py test_dfra.py',
        [('ctx.world_size * gradient.narrow(', 'gradient.narrow(')],
    ),
    Fault(
        'DKD: target and non-target weights swapped',
        'test_dkd.py test_golden.py',
        [
            (
                'self.alpha * kl_div(target_s, target_t) + self.beta * kl_div(others_s, others_t)',
                'self.beta * kl_div(target_s, target_t) + self.alpha * kl_div(others_s, others_t)',
            )
        ],
    ),
    Fault(
        'RKD: sign of the angles',
        'test_rkd.py test_golden.py',
        [
            (
                'smooth_l1_loss(_angles(student), _angles(teacher))',
                'smooth_l1_loss(_angles(student), -_angles(teacher))',
            )
        ],
    ),
    Fault(
        'DIST: softmax over the batch',
        'losses/test_dist.py test_golden.py',
        [('(z / self.temperature).softmax(-1)', '(z / self.temperature).softmax(0)')],
    ),
    Fault(
        'DIST: weights of the two terms swapped',
        'losses/test_dist.py test_golden.py',
        [
            (
                'loss = self.beta * (1 - _correlation(student, teacher).mean(-1))\n'
                '        if len(teacher) > 1:\n'
                '            loss = loss + self.gamma * ',
                'loss = self.gamma * (1 - _correlation(student, teacher).mean(-1))\n'
                '        if len(teacher) > 1:\n'
                '            loss = loss + self.beta * ',
            )
        ],
    ),
    Fault(
        'OFA: exponent left out',
        'test_ofa.py test_golden.py',
        [
            (
                'weights = (teacher.softmax(-1) + target) ** self.eps',
                'weights = (teacher.softmax(-1) + target)',
            )
        ],
    ),
    Fault(
        'CC: products of a sample with itself',
        'test_cc.py test_golden.py',
        [('(deviation[:-1] * deviation[1:])', '(deviation[:-1] * deviation[:-1])')],
    ),
    Fault(
        'HCD: label not left out of the cosine',
        'test_hcd.py',
        [('_similarity(drop_class(sub_logits, classes))', '_similarity(sub_logits)')],
    ),
    Fault(
        'HCD: direction of the KL divergence',
        'test_hcd.py',
        [('kl_div(fused, student_logits)', 'kl_div(student_logits, fused)')],
    ),
    Fault(
        'HCD: gradient flows into the logits of the teacher',
        'test_hcd.py',
        [('teacher_logits.detach()', 'teacher_logits')],
    ),
    Fault(
        'RSD: diagonal counted as redundancy',
        'test_rsd.py test_golden.py',
        [
            (
                'correlation.square().sum((-2, -1)) - diagonal.square().sum(-1)',
                'correlation.square().sum((-2, -1))',
            )
        ],
    ),
    Fault(
        'CRD: bank not updated',
        'test_crd.py',
        [('bank[index] = torch.where(', '_ = torch.where(')],
    ),
    Fault(
        'CRD: a sample is its own negative',
        'test_crd.py',
        [('others + (others >= own)', 'others')],
    ),
    Fault(
        'QueueLoss: empty entries count',
        'test_queue.py',
        [('is_filled = queue.any(-1)', 'is_filled = torch.ones_like(queue.any(-1))')],
    ),
    Fault(
        'QueueLoss: the queue never moves on',
        'test_queue.py',
        [('(self.position + count) % self.size', 'self.position.clone()')],
    ),
    Fault(
        'kNN: neighbours of the last block alone',
        'test_knn.py',
        [('nearest = torch.cat([nearest, found], 1)', 'nearest = found')],
    ),
    # Necks, taps and backbones.
    Fault(
        'MSDF: fusion weights over the classes',
        'test_msdf.py',
        [('scores.softmax(dim=0)', 'scores.softmax(dim=-1)')],
    ),
    Fault(
        'a tap is not removed',
        'test_recorder.py',
        [
            (
                'for handle in handles:\n                handle.remove()',
                'for handle in handles:\n                pass',
            )
        ],
    ),
    Fault(
        'class token stays in the middle of its patches',
        'test_layout.py test_stages.py',
        [('torch.cat([token, before, after], 1)', 'torch.cat([before, token, after], 1)')],
    ),
    Fault(
        'selective scan: sign in the gradient of the decay',
        'test_selective_scan.py',
        [('product.mul_(A), 1, out=grad_delta[t]', 'product.mul_(-A), 1, out=grad_delta[t]')],
    ),
    Fault(
        'neck: an output hides a tensor of the student',
        'test_own_neck.py',
        [('        if name in taken:\n', '        if False:\n')],
    ),
    Fault(
        'taps: a path that nothing reads is not checked',
        'test_own_neck.py',
        [('dict.fromkeys([*names, *self.recorder.configured])', 'list(names)')],
    ),
    Fault(
        'taps: only stages have a layout',
        'test_own_neck.py',
        [
            (
                'layout = None if name in VECTORS else tap_layout(self.model, tensor, size)',
                "layout = tap_layout(self.model, tensor, size) if 'stage' in name else None",
            )
        ],
    ),
    # Teacher and Distiller.
    Fault(
        'teacher left in training mode',
        'test_teacher.py test_distiller.py',
        [('self.model.requires_grad_(False).eval()', 'self.model.requires_grad_(False)')],
    ),
    Fault(
        'teacher in the state dict',
        'test_distiller.py',
        [
            (
                'self.losses = nn.ModuleList(_comparison(',
                'self.taught = self.teacher.model\n'
                '            self.losses = nn.ModuleList(_comparison(',
            ),
            (
                'self.losses = build_entries(losses)',
                'self.taught = self.teacher.model\n            self.losses = build_entries(losses)',
            ),
        ],
    ),
    Fault(
        'building the teacher changes what the student draws',
        'test_distiller.py',
        [('torch.random.fork_rng(devices)', 'torch.random.fork_rng(devices, enabled=False)')],
    ),
    Fault(
        'NaN logits of the teacher accepted',
        'test_teacher.py',
        [('self._check_finite(checked, record[checked], images)', 'pass')],
    ),
    Fault(
        'renormalisation: std of source and target swapped',
        'test_normalization.py test_data_preprocessor.py',
        [
            (
                'source_std / target_std, (source_mean - target_mean) / target_std',
                'target_std / source_std, (source_mean - target_mean) / target_std',
            )
        ],
    ),
    Fault(
        'renormalisation: channels not flipped',
        'test_normalization.py test_data_preprocessor.py',
        [
            (
                '(images.flip(1) if self.flip else images) * self.scale',
                'images * self.scale',
            )
        ],
    ),
    Fault(
        'labels not soft under mixup',
        'test_distiller.py test_dkd.py',
        [("if 'gt_score' in data_samples[0]:", 'if False:')],
    ),
    Fault(
        'validation runs the teacher',
        'test_distiller.py',
        [
            (
                'return self.student(inputs, data_samples, mode=mode)',
                'return self.teacher.model(inputs, data_samples, mode=mode)',
            )
        ],
    ),
    Fault(
        'labels out of range accepted',
        'test_distiller.py',
        [
            (
                '((labels >= 0) & (labels < num_classes)).all()',
                '(labels >= 0).all()',
            )
        ],
    ),
    Fault(
        'teacher and student of different classes accepted',
        'test_distiller.py',
        [
            ("_check_classes(num_classes, teacher_probe['logits'].shape[-1])", 'pass'),
            ("if 'logits' in self._teacher_names and classes[0] != classes[1]:", 'if False:'),
            ('            if classes[0] != classes[1]:', '            if False:'),
        ],
    ),
    Fault(
        "ArcFace's margin in the compared logits",
        'test_student.py',
        [('self._repeats_head = True', 'pass')],
    ),
    Fault(
        'converting a copy converts the shared teacher',
        'test_classifier.py',
        [('        self._is_shared = True\n', '')],
    ),
    Fault(
        'mean of the logits of several teachers, not of their probabilities',
        'test_ensemble.py',
        [('F.log_softmax(at_least_float32(each), -1)', 'at_least_float32(each)')],
    ),
    Fault(
        'distillation head without a loss left untrained',
        'test_distillation_token.py',
        [('separate_heads(trains_second_head)', 'separate_heads(True)')],
    ),
    Fault(
        'teacher runs after distillation was stopped',
        'test_stop_distill.py',
        [('if self.distillation_stopped:', 'if False:')],
    ),
    Fault(
        'OFA: soft labels as they are',
        'test_ofa.py test_all.py',
        [
            (
                'target = F.one_hot(class_of(target, teacher), teacher.shape[1])',
                'target = target if target.dim() > 1 else F.one_hot(target, teacher.shape[1])',
            )
        ],
    ),
    Fault(
        'weight of a loss ignored',
        'test_comparison.py test_loss_entry.py test_distiller.py',
        [
            (
                "f'loss_{self.name}_{name}': weight * value",
                "f'loss_{self.name}_{name}': value",
            ),
            (
                '[weight * value for weight, value in zip(weights, values, strict=True)]',
                'list(values)',
            ),
        ],
    ),
    Fault(
        'unknown fields of a config accepted',
        'test_errors.py test_distiller.py test_comparison.py test_loss_entry.py',
        [
            (
                'signature.bind(self, *args, **kwargs)',
                'kwargs = {k: v for k, v in kwargs.items() if k in signature.parameters}',
            )
        ],
    ),
    # Weights and files.
    Fault(
        'missing weights accepted',
        'test_weights.py test_builder.py test_teacher.py',
        [
            ('    if lost:\n        return report, (', '    if False:\n        return report, ('),
            (
                '    if missing:\n        return report, (',
                '    if False:\n        return report, (',
            ),
        ],
    ),
    Fault(
        'weights of load_from not counted',
        'test_load_weights.py',
        [('load_into(model, checkpoint, label, trains).log(label)', 'return')],
    ),
    Fault(
        'any head replaced in a test',
        'test_load_weights.py',
        [
            (
                "load_into(model, content, f'{field}={cfg.load_from!r}', trains)",
                "load_into(model, content, f'{field}={cfg.load_from!r}', True)",
            )
        ],
    ),
    Fault(
        "statistics of a teacher's weights ignored",
        'test_data_preprocessor.py',
        [('fields, source = {**fields, **found.to_fields(shared)}, found.source', 'pass')],
    ),
    Fault(
        'checksums of a checkpoint not verified',
        'test_checkpoint.py',
        [
            (
                'damaged = archive.testzip() if has_checksums else None',
                'damaged = None',
            )
        ],
    ),
    Fault(
        'unsafe unpickling of checkpoints',
        'test_hostile_files.py test_checkpoint.py',
        [('weights_only=True', 'weights_only=False')],
    ),
    Fault(
        'unsafe unpickling of data sets',
        'test_safe_pickle.py test_hostile_files.py',
        [
            (
                '        if (module, name) not in _DATA_STAND_INS:\n',
                '        if (module, name) not in _DATA_STAND_INS:\n'
                '            return super().find_class(module, name)\n'
                '        if (module, name) not in _DATA_STAND_INS:\n',
            ),
            (
                '        if (module, name) not in STAND_INS:\n',
                '        if (module, name) not in STAND_INS:\n'
                '            return super().find_class(module, name)\n'
                '        if (module, name) not in STAND_INS:\n',
            ),
            (
                '        if (module, name) not in _NUMERIC_STAND_INS:\n',
                '        if (module, name) not in _NUMERIC_STAND_INS:\n'
                '            return super().find_class(module, name)\n'
                '        if (module, name) not in _NUMERIC_STAND_INS:\n',
            ),
        ],
    ),
    Fault(
        'config text: calls other than dict(...) accepted',
        'test_config_text.py test_safe_config.py',
        [("if node.func.id != 'dict' or any(", 'if any(')],
    ),
    Fault(
        'evaluated average of timm not preferred',
        'test_checkpoint.py',
        [("('state_dict_ema', 'state_dict', ", "('state_dict', 'state_dict_ema', ")],
    ),
    Fault(
        'exporter: wrong prefix of timm students',
        'test_checkpoint.py test_export.py test_export_student.py',
        [("for prefix in ('student.model.', 'student.'):", "for prefix in ('student.',):")],
    ),
    Fault(
        'exporter: graph not compared with the student',
        'test_export.py test_export_student.py',
        [('if not difference <= allowed:', 'if False:')],
    ),
    Fault(
        'fsync left out',
        'test_files.py test_atomic_files.py',
        [
            (
                'yield file\n            file.flush()\n            os.fsync(file.fileno())',
                'yield file',
            )
        ],
    ),
    Fault(
        'old checkpoint removed before the new one is written',
        'hooks/test_checkpoint.py',
        [
            (
                '        self._write(runner, self.filename_tmpl.format(step), meta, '
                'self.by_epoch)\n'
                '        self._remove_outdated()\n',
                '        self._remove_outdated()\n'
                '        self._write(runner, self.filename_tmpl.format(step), meta, '
                'self.by_epoch)\n',
            )
        ],
    ),
    Fault(
        'resume takes the oldest checkpoint',
        'engine/test_starting_point.py',
        [('sorted(order, key=order.get, reverse=True)', 'sorted(order, key=order.get)')],
    ),
    Fault(
        "checkpoint of another run counts as the run's own",
        'engine/test_starting_point.py',
        [('if record.owns(origin)]', ']')],
    ),
    Fault(
        'file of another run is removed',
        'faults/test_run_files.py',
        [
            ('or not self.identity.owns(origin):', 'or False:'),
            ('and self.identity.owns(origin)', ''),
        ],
    ),
    Fault(
        'restarted run takes the checkpoints of an earlier launch',
        'engine/test_starting_point.py utils/test_run_identity.py',
        [
            (
                'record is not None and any(name in record.launches for name in names)',
                'record is not None and bool(names)',
            )
        ],
    ),
    Fault(
        'archive: a hostile member is unpacked',
        'test_archive.py',
        [
            ('return tarfile.data_filter(member, folder)', 'return member'),
            ('if not member.isreg():', 'if False:'),
            (
                "tar.extractall(folder, filter='data')",
                "tar.extractall(folder, filter='fully_trusted')",
            ),
        ],
    ),
    Fault(
        'archive: unlimited size',
        'test_archive.py',
        [('if self.left < 0:', 'if False:')],
    ),
    # Runs.
    Fault(
        'preflight: draw from the global generators',
        'test_preflight.py',
        [
            (
                'log_warnings_only(), preserve_global_rng(), _visualizer',
                'log_warnings_only(), _visualizer',
            )
        ],
    ),
    Fault(
        'preflight: keep the visualizer that was built',
        'test_preflight.py',
        [('            manager._instance_dict.clear()\n', '')],
    ),
    Fault(
        'preflight: no near name for an open class',
        'test_preflight.py',
        [('        if hint or not is_open:\n', '        if not is_open:\n')],
    ),
    Fault(
        'resume: one sample too far',
        'test_view_sampler.py test_exact_resume.py',
        [('self._start = position', 'self._start = position + 1')],
    ),
    Fault(
        'resume: one batch too early',
        'test_exact_resume.py',
        [
            (
                'sampler.start_at(done * loop.dataloader.batch_size)',
                'sampler.start_at((done - 1) * loop.dataloader.batch_size)',
            )
        ],
    ),
    Fault(
        'resume: a new learning rate is ignored',
        'engine/test_resume.py',
        [('if is_complete and not has_moved and not changes.of_schedule:', 'if True:')],
    ),
    Fault(
        'resume: another model is not noticed',
        'engine/test_resume.py',
        [("check_weights(checkpoint['state_dict'], weights, label)", 'pass')],
    ),
    Fault(
        'an earlier run is overwritten',
        'engine/test_work_dir.py test_train.py',
        [
            ('if earlier and not overwrite:', 'if False:'),
            ('if found and not overwrite:', 'if False:'),
        ],
    ),
    Fault(
        'resume: steps not seeded',
        'test_exact_resume.py',
        [("_seed(runner, 'iter', runner.iter)", 'pass')],
    ),
    Fault(
        'EMA swapped twice when a run is stopped',
        'test_exact_resume.py',
        [
            (
                'self._write(runner, name, dict(epoch=runner.epoch, iter=iteration), '
                'by_epoch=False)',
                "runner.call_hook('before_val_epoch')\n"
                '        self._write(runner, name, dict(epoch=runner.epoch, iter=iteration), '
                'by_epoch=False)',
            )
        ],
    ),
    Fault(
        'view seed ignores the epoch',
        'test_view_sampler.py',
        [('seed_global_rng(*view)', 'seed_global_rng(view.seed, 0, view.index)')],
    ),
    Fault(
        'mixup not seeded by the views',
        'test_data_preprocessor.py test_view_sampler.py test_teacher_cache.py',
        [('seed_global_rng(views[0]', '(lambda *_: None)(views[0]')],
    ),
    Fault(
        'stop signal ignored',
        'test_stop_signal.py test_exact_resume.py',
        [
            ('self._asked = 128 + (', 'self._asked = 0 * ('),
            ('self._requested_code = 128 + (', 'self._requested_code = 0 * ('),
        ],
    ),
    Fault(
        'non-finite step not skipped',
        'test_non_finite.py',
        [('elif skip:', 'elif False:')],
    ),
    Fault(
        'BatchNorm statistics of a skipped step kept',
        'test_non_finite.py',
        [
            ('torch.where(bad > 0, kept, torch.cat(group))', 'torch.cat(group)'),
            ('torch.where(skip > 0, kept, torch.cat(group))', 'torch.cat(group)'),
            ('torch.where(skip > 0, kept, now)', 'now'),
            ('torch.where(is_skipped, kept, now)', 'now'),
        ],
    ),
    Fault(
        'votes not reduced over the ranks',
        'test_non_finite.py test_processes.py utils/test_dist.py',
        [("dist.all_reduce(flags, 'max')", 'pass')],
    ),
    Fault(
        'buffers not broadcast before validation',
        'test_broadcast_buffers.py',
        [('dist.broadcast(buffer)', 'pass')],
    ),
    Fault(
        'accuracy of the teacher measured on the student',
        'test_teacher_accuracy.py',
        [
            (
                "model.predict_teacher(batch['inputs'], batch['data_samples'])",
                "model(batch['inputs'], batch['data_samples'], mode='predict')",
            ),
            (
                "model.teacher.predictions(batch['inputs'], batch['data_samples'], "
                'model.num_classes)',
                "[('teacher', model(batch['inputs'], batch['data_samples'], mode='predict'))]",
            ),
        ],
    ),
    Fault(
        'cache: checksum not compared',
        'test_teacher_cache.py',
        [
            (
                'return torch.from_numpy(self.encoding.unpack(packed)) if valid else None',
                'return torch.from_numpy(self.encoding.unpack(packed))',
            ),
            (
                'return torch.from_numpy(values) if valid else None',
                'return torch.from_numpy(values)',
            ),
        ],
    ),
    Fault(
        'cache: entries of all epochs in one row',
        'test_teacher_cache.py',
        [('view.epoch * entries[1] + view.index', 'view.index')],
    ),
    Fault(
        'cache: fingerprint ignores the images',
        'test_teacher_cache.py',
        [("images=_hash(*(np.ascontiguousarray(item['inputs']) for item in items))", 'images=0')],
    ),
    Fault(
        'cache: fingerprint ignores the weights of the teacher',
        'test_teacher_cache.py',
        [('weights=_hash(names, *values)', 'weights=_hash(names)')],
    ),
    Fault(
        'cache: rest of sparse logits is their mean',
        'test_encodings.py',
        [('np.log(mass) - np.log(self.num_classes - self.k)', 'np.log(mass)')],
    ),
    Fault(
        'unlabelled: the own loss divides by all images',
        'test_unlabeled.py',
        [("kwargs['avg_factor'] * len(index) / batch_size", "kwargs['avg_factor']")],
    ),
    Fault(
        'unlabelled: mixed with labelled images',
        'test_unlabeled.py',
        [
            (
                '        if not unlabelled:\n            return self._mix',
                '        if True:\n            return self._mix',
            )
        ],
    ),
    # Data sets.
    Fault(
        'mixed: each epoch begins with the same unlabelled images',
        'test_unlabeled.py',
        [('        place += self.rank\n', '        place = self.rank\n')],
    ),
    Fault(
        'mixed: unlabelled images are not shared out',
        'test_unlabeled.py',
        [('            place += self.world_size\n', '            place += 1\n')],
    ),
    Fault(
        'CIFAR: MD5 not compared',
        'test_cifar.py',
        [('elif self.verify and not check_md5(path, md5):', 'elif False:')],
    ),
    Fault(
        'Tiny ImageNet: classes in the order of the file',
        'test_tiny_imagenet.py',
        [('sorted(_read_table(path, num_columns=1))', 'list(_read_table(path, num_columns=1))')],
    ),
    Fault(
        'image folder: validation images are trained on',
        'test_image_folder.py',
        [
            (
                "if (name in held_out) == (self.split == 'val')",
                "if name in held_out or self.split == 'train'",
            )
        ],
    ),
    Fault(
        'image folder: test images validate although there are validation images',
        'test_splits.py',
        [
            (
                '_only(root, splits, VAL_NAMES) or _only(root, splits, TEST_NAMES)',
                '_only(root, splits, TEST_NAMES) or _only(root, splits, VAL_NAMES)',
            )
        ],
    ),
    Fault(
        'image folder: an image is held out by its place among the others',
        'test_splits.py',
        [
            (
                '{name: _draw(name, seed) for name in names}',
                '{name: _draw(str(i), seed) for i, name in enumerate(sorted(names))}',
            )
        ],
    ),
    Fault(
        'flip upside down',
        'test_transforms.py',
        [('cv2.flip(image, 1)', 'cv2.flip(image, 0)')],
    ),
    # API and reports.
    Fault(
        'distill: learning rate scaled inversely',
        'test_distill.py test_recipe.py test_api.py',
        [
            (
                'scale = batch_size / cfg.auto_scale_lr.base_batch_size',
                'scale = cfg.auto_scale_lr.base_batch_size / batch_size',
            )
        ],
    ),
    Fault(
        'distill: learning rate of a large batch not capped',
        'test_distill.py',
        [('if lr is None and scale > _MAX_LR_SCALE:', 'if False:')],
    ),
    Fault(
        'distill: warm-up not shortened',
        'test_distill.py test_recipe.py test_api.py',
        [('min(cosine.begin, epochs // 8)', 'cosine.begin')],
    ),
    Fault(
        'distill: best accuracy is the lowest',
        'test_distill.py test_api.py',
        [
            ('best_accuracy=float(max(history))', 'best_accuracy=float(min(history))'),
            ('best=float(max(history))', 'best=float(min(history))'),
        ],
    ),
    Fault(
        'export: timm pads images instead of cropping them',
        'test_export.py',
        [
            (
                'crop_mode=self.crop_mode,\n        )\n\n    def code(',
                "crop_mode='border',\n        )\n\n    def code(",
            )
        ],
    ),
    Fault(
        'model card: accuracy of the epoch before',
        'test_model_card.py',
        [('curve(records, name).get(epoch)', 'curve(records, name).get(epoch - 1)')],
    ),
    Fault(
        'measures: softmax over the samples',
        'test_measures.py',
        [('exponentials.sum(axis, keepdims=True)', 'exponentials.sum(0, keepdims=True)')],
    ),
    Fault(
        'measures: calibration bins lose their upper edge',
        'test_measures.py',
        [('np.ceil(confidence * bins).astype(int) - 1', 'np.floor(confidence * bins).astype(int)')],
    ),
    Fault(
        'report: texts not escaped',
        'test_page.py test_report.py',
        [('{escape(cell)}', '{cell}'), ('autoescape=True', 'autoescape=False')],
    ),
]


@cache
def read_sources(root: Path) -> dict[Path, str]:
    """Return the files of the package in a checkout: path below its root -> text."""
    paths = sorted(path for path in (root / PACKAGE).rglob('*') if path.suffix in ('.py', '.c'))
    return {path.relative_to(root): path.read_text() for path in paths}


def locate(root: Path, fault: Fault) -> tuple[Path, str, str]:
    """Find the only place of a fault in a checkout: the file, the snippet and its replacement.

    Raises:
        LookupError: No form of the fault occurs exactly once.
    """
    sources = read_sources(root).items()
    for snippet, replacement in fault.forms:
        places = [path for path, text in sources for _ in range(text.count(snippet))]
        if len(places) == 1:
            return places[0], snippet, replacement
    raise LookupError(f'{fault.name}: no snippet occurs exactly once; add its new form')


def find_tests(root: Path, fault: Fault) -> list[str]:
    """Find the test files of a fault in a checkout.

    Raises:
        LookupError: None of them exists.
    """
    found = [
        str(path.relative_to(root))
        for name in fault.tests.split()
        for path in sorted((root / 'tests').rglob(name), key=lambda path: (len(path.parts), path))
    ]
    if not found:
        raise LookupError(f'{fault.name}: none of the test files {fault.tests} exists')
    return found


def plan(root: Path, faults: Sequence[Fault]) -> tuple[list[tuple], list[str]]:
    """Return the faults of a checkout with their places and tests, and the errors of the others."""
    planned, missing = [], []
    for fault in faults:
        try:
            planned.append((fault, locate(root, fault), find_tests(root, fault)))
        except LookupError as error:
            missing.append(str(error))
    return planned, missing


class Copy:
    """A copy of a checkout in which faults are planted."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for name in filter(None, listed.split('\0')):
            if os.path.lexists(root / name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name, follow_symlinks=False)
        self.build()

    def build(self) -> None:
        """Compile the C kernel in place."""
        subprocess.run(
            [sys.executable, 'setup.py', 'build_ext', '--inplace'],
            cwd=self.folder,
            capture_output=True,
            check=True,
        )

    @contextlib.contextmanager
    def planted(self, path: Path, snippet: str, replacement: str) -> Iterator[None]:
        """Keep a fault in a file of the copy inside the ``with``."""
        path = self.folder / path
        text = path.read_text()
        try:
            path.write_text(text.replace(snippet, replacement))
            if path.suffix == '.c':
                self.build()
            yield
        finally:
            path.write_text(text)
            if path.suffix == '.c':
                self.build()

    def run(self, tests: Sequence[str], *options: str) -> list[str]:
        """Run tests in a forked process; return the ids of those that fail."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context('fork')
        process = context.Process(target=_run_tests, args=(self.folder, tests, options, sender))
        process.start()
        sender.close()
        failed, deadline = [], time.monotonic() + TIMEOUT
        try:
            while receiver.poll(max(0, deadline - time.monotonic())):
                failed.append(receiver.recv())
        except EOFError:
            pass
        else:
            failed.append(TIMED_OUT)
        if process.is_alive():
            process.join(10)
        if process.is_alive():
            os.killpg(process.pid, 9)
            process.join()
        if process.exitcode not in (0, 1, 2) and not failed:
            failed.append(f'(exit code {process.exitcode})')
        return failed


def _run_tests(
    folder: Path, tests: Sequence[str], options: Sequence[str], sender: Connection
) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path) != folder)]
    os.environ['PYTHONPATH'] = str(folder)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)

    class Failures:
        """Sends the ids of tests that fail and of files that cannot be imported."""

        def pytest_runtest_logreport(self, report):
            if report.failed:
                sender.send(report.nodeid)

        def pytest_collectreport(self, report):
            if report.failed:
                sender.send(report.nodeid)

    arguments = ['-q', '-p', 'no:cacheprovider', '--rootdir', str(folder), *options, *tests]
    code = pytest.main(arguments, plugins=[Failures()])
    # A normal exit would wait for the threads of the tests.
    os._exit(int(code))


def _import_once() -> None:
    """Import slow modules, but none of the package's; the forked processes share them."""
    import hypothesis
    import mmengine.runner  # noqa: F401
    import mmpretrain.datasets  # noqa: F401
    import mmpretrain.models  # noqa: F401
    import timm  # noqa: F401

    # One failing example is enough; shrinking it takes most of a minute.
    hypothesis.settings.register_profile('unshrunk', phases=[hypothesis.Phase.generate])
    hypothesis.settings.load_profile('unshrunk')
    package = [name for name in sys.modules if name.partition('.')[0] == PACKAGE]
    assert not package, 'the package must not be imported before faults are planted'


def main() -> int:
    """Plant the faults; return 1 if a test fails without any fault, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parents[1]
    parser.add_argument('--root', type=Path, default=root, help='the checkout (default: this one)')
    parser.add_argument('--out', type=Path, help='also write the table to this file')
    parser.add_argument('--only', help='parts of the names of faults, separated by commas')
    parser.add_argument('--check', action='store_true', help='only look for the snippets')
    args = parser.parse_args()
    wanted = (args.only or '').lower().split(',')
    faults = [fault for fault in FAULTS if any(part in fault.name.lower() for part in wanted)]
    planned, missing = plan(args.root.resolve(), faults)
    if missing or args.check:
        print('\n'.join(missing) or f'the snippets of all {len(faults)} faults were found')
        return int(bool(missing))
    with tempfile.TemporaryDirectory() as name:
        return _report(Copy(args.root.resolve(), Path(name).resolve()), planned, args.out)


def _report(copy: Copy, planned: Sequence[tuple], out: Path | None) -> int:
    _import_once()
    lines, finders = [], set()
    for fault, place, tests in planned:
        began = time.monotonic()
        with copy.planted(*place):
            failed = copy.run(tests, '-x')
        finders |= {test for test in failed if test.partition('::')[0] in tests}
        lines.append(f'{fault.name} | {place[0]} | {failed[0] if failed else NOT_FOUND}')
        print(f'{lines[-1]} ({time.monotonic() - began:.0f} s)', flush=True)
    false_alarms = copy.run(sorted(finders)) if finders else []
    found = sum(not line.endswith((NOT_FOUND, TIMED_OUT)) for line in lines)
    lines.append(f'{found} of {len(planned)} faults found')
    lines += [f'fails without any fault: {test}' for test in false_alarms]
    print('\n'.join(lines[len(planned) :]))
    if out:
        out.write_text('fault | source | found by\n' + '\n'.join(lines) + '\n')
    return int(bool(false_alarms))


if __name__ == '__main__':
    sys.exit(main())
