"""Rules, dashboard and autoscaler by Prometheus' own promtool, where it is installed: they parse, and alerts fire when they should."""

import json
import shutil
import subprocess

import pytest
import yaml

from tests.k8s.conftest import only

pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")

# Series, one sample a minute, and the alerts that fire at a minute; the others must not.
CASES = [
    ({'stagecraft_progress_timestamp_seconds{stage="sft"}': "0+0x60"}, 50, {"StageStalled"}),
    ({'stagecraft_progress_timestamp_seconds{stage="sft"}': "0+60x60"}, 50, set()),
    ({'stagecraft_value{stage="sft",curve="train",key="loss"}': "2 2 NaN NaN NaN"}, 3, {"LossNotFinite"}),
    ({'stagecraft_value{stage="sft",curve="train",key="loss"}': "2 2 +Inf +Inf"}, 3, {"LossNotFinite"}),
    ({'stagecraft_value{stage="sft",curve="train",key="loss"}': "2x300 4x60"}, 340, {"LossJumped"}),
    ({'stagecraft_value{stage="rl",curve="train",key="loss"}': "-0.01x300 0.02x60"}, 340, set()),  # of a policy: around nothing
    ({'stagecraft_value{stage="rl",curve="train",key="reward"}': "0.8x100 0.1x60"}, 140, {"RewardCollapsed"}),
    ({'kueue_pending_workloads{cluster_queue="stagecraft-serve",status="inadmissible",replica_role="leader"}': "1x90",
      'kueue_pending_workloads{cluster_queue="stagecraft-serve",status="active",replica_role="leader"}': "0x90"}, 80, {"JobWaits"}),
    ({'kueue_pending_workloads{cluster_queue="stagecraft-train",status="active",replica_role="leader"}': "1x90",
      'kueue_pending_workloads{cluster_queue="stagecraft-train",status="inadmissible",replica_role="leader"}': "0x90"}, 80, {"JobWaits"}),
    ({'kueue_pending_workloads{cluster_queue="stagecraft-train",status="active",replica_role="leader"}': "0x90"}, 80, set()),
    ({'up{namespace="stagecraft",service="vllm",pod="a"}': "0x30"}, 20, {"NoServer"}),
    ({'vllm:num_requests_waiting{namespace="stagecraft",pod="a"}': "500x60"}, 50, {"RequestsWait"}),
    ({'DCGM_FI_DEV_XID_ERRORS{gpu="0",Hostname="n"}': "0 79 79"}, 2, {"GpuFault"}),
    ({'DCGM_FI_DEV_XID_ERRORS{gpu="0",Hostname="n"}': "0 43 43"}, 2, set()),
    ({'kube_deployment_status_replicas_available{namespace="stagecraft",deployment="mlflow"}': "0x30"}, 20, {"DiaryDown"}),
]
SERVER = 'up{namespace="stagecraft",service="vllm",pod="a"}'


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_everything_parses(objects, expressions, tmp_path):
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(only(objects, "PrometheusRule")["spec"]))
    promtool("check", "rules", str(rules))
    panels = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    rules.write_text(json.dumps({"groups": [{"name": "panels", "rules": panels}]}))
    assert f"{len(expressions)} rules found" in promtool("check", "rules", str(rules))


def test_alerts_fire_when_they_should_and_else_not(objects, tmp_path):
    rules = only(objects, "PrometheusRule")["spec"]
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = []
    for series, minute, firing in CASES:
        given = series if SERVER in series else {SERVER: "1x400", **series}  # a server that answers, unless the case is about it
        tests.append({"interval": "1m", "input_series": [{"series": key, "values": value} for key, value in given.items()],
                      "promql_expr_test": [{"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
                                            "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": int(name in firing)}]}
                                           for name in names]})
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))
