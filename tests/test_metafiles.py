"""model-index.yml and the metafiles, which OpenMMLab's tools read, are correct."""

from pathlib import Path

import yaml

from mldr_kd_mm import list_configs

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
METAFILES = {path: yaml.safe_load((ROOT / path).read_text()) for path in INDEX}
MODELS = {model['Config']: (path, model) for path in INDEX for model in METAFILES[path]['Models']}
COLLECTIONS = {
    collection['Name']: path for path in INDEX for collection in METAFILES[path]['Collections']
}
DOCS = ''.join((ROOT / 'docs' / name).read_text() for name in ('benchmarks.md', 'cifar100.md'))


def test_index_has_all_metafiles():
    there = {str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/metafile.yml')}
    assert sorted(INDEX) == sorted(there)


def test_names_are_unique():
    entries = [model for metafile in METAFILES.values() for model in metafile['Models']]
    assert len({model['Name'] for model in entries}) == len(MODELS) == len(entries)
    assert len(COLLECTIONS) == sum(len(metafile['Collections']) for metafile in METAFILES.values())


def test_collections(subtests):
    for path in INDEX:
        for collection in METAFILES[path]['Collections']:
            with subtests.test(path):
                assert set(collection) <= {'Name', 'README', 'Paper'}
                assert (ROOT / collection['README']).is_file()
                assert collection.get('Paper', {'URL': 'https://'})['URL'].startswith('https://')


def test_entries(subtests):
    for config, (path, model) in MODELS.items():
        with subtests.test(config):
            assert Path(config).parent == Path(path).parent
            assert model['Name'] == f'{Path(config).parent.name}_{Path(config).stem}'
            assert COLLECTIONS[model['In Collection']] == path
            assert set(model) <= {'Name', 'In Collection', 'Config', 'Results'}
            for result in model.get('Results', []):
                assert set(result) == {'Task', 'Dataset', 'Metrics'}
                for value in result['Metrics'].values():
                    assert f'{value:.2f} %' in DOCS, 'the documentation has no such result'


def test_all_whole_configs_have_an_entry():
    names = {f'configs/{name}' for name in list_configs() if not name.startswith('pairs/')}
    assert set(MODELS) == names
