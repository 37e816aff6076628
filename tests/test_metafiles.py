"""model-index.yml and the metafiles: what OpenMMLab's tools read is true."""

from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize('path', INDEX)
def test_collections(path):
    for collection in METAFILES[path]['Collections']:
        assert set(collection) <= {'Name', 'README', 'Paper'}
        assert (ROOT / collection['README']).is_file()
        assert collection.get('Paper', {'URL': 'https://'})['URL'].startswith('https://')


@pytest.mark.parametrize('config', MODELS)
def test_entry(config):
    path, model = MODELS[config]
    assert (ROOT / config).is_file()
    assert Path(config).parent == Path(path).parent
    assert model['Name'] == f'{Path(config).parent.name}_{Path(config).stem}'
    assert COLLECTIONS[model['In Collection']] == path
    assert set(model) <= {'Name', 'In Collection', 'Config', 'Metadata', 'Results'}
    assert model['Metadata']['Training Data']
    for result in model.get('Results', []):
        assert set(result) == {'Task', 'Dataset', 'Metrics'}
        for value in result['Metrics'].values():
            assert f'{value:.2f} %' in DOCS, 'no result that the documentation does not have'
