"""Does a real run tell one trace of each adapter, all five kinds of processes in it?"""

from pathlib import Path

import pytest

from hushtune_common.traces.table import RULES
from tests.contracts.test_traces import collector
from tests.system.test_whole_path import TINY, finish, sentences, start_testbed

pytestmark = pytest.mark.slow


def test_a_real_run_tells_one_trace_for_each_adapter_in_which_every_process_has_its_part(tmp_path: Path) -> None:
    lines = list(sentences())
    (tmp_path / "private.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "public.txt").write_text("\n".join(line.replace("the", "any") for line in lines[::5]), encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    with collector() as (url, got):
        testbed = start_testbed(tmp_path / "tiny.toml", "--traces", url)
        output = finish(testbed, within_s=400)
    assert testbed.returncode == 0, output
    traces = {span.trace_id for _, span in got}
    assert len(traces) == 3
    for trace in traces:
        mine = [(process, span) for process, span in got if span.trace_id == trace]
        (client,) = {a.value.string_value for _, span in mine for a in span.attributes if a.key == "hushtune.client"}
        assert {process for process, _ in mine} == {"coordinator", "air", "owner", "eavesdropper", client}
        assert {span.name for _, span in mine} == {rule.name for rule in RULES}
        by_id = {span.span_id: span.name for _, span in mine}
        parents = {rule.name: rule.parent for rule in RULES}
        assert all(by_id.get(span.parent_span_id, "") == parents[span.name] for _, span in mine)
