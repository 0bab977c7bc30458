"""The scripts of launch/: what --dry_run prints is what runs, in the caller's folder, and again where that is meant."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml

from slm_jax import train

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
BIN = pathlib.Path(sys.executable).parent

# Stands for a program: writes down how and where it was called, and does what the file beside it says.
FAKE = """#!/bin/bash
{ printf '%s\\0' "$PWD" "$0" "$@"; echo; } >>"$CALLS"
if [ -e "$0.does" ]; then . "$0.does"; fi
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of the caller's, and programs that write down how they are called instead of what they do."""
    return Place(tmp_path, monkeypatch)


class Place:
    """Fake programs on the PATH, a fake environment as VENV, and what was called."""

    def __init__(self, tmp_path, monkeypatch):
        self.cwd, self._log, self._bin = tmp_path / 'my folder', tmp_path / 'calls', tmp_path / 'bin'
        self.cwd.mkdir()
        (tmp_path / 'venv/bin').mkdir(parents=True)
        for name in ('gcloud', 'kubectl', 'docker', 'sbatch', 'srun', 'scontrol'):
            self.fake(self._bin / name)
        for name in ('pip', 'slm-jax', 'python', 'ruff', 'mypy'):
            self.fake(tmp_path / 'venv/bin' / name)
        self.env = {
            'PATH': f'{self._bin}:/usr/bin:/bin', 'HOME': str(tmp_path), 'TMPDIR': str(tmp_path),
            'CALLS': str(self._log), 'VENV': str(tmp_path / 'venv'),
            'RESTART_SECONDS': '0', 'POLL_SECONDS': '0', 'EXTRAS': '',
        }  # fmt: skip

    def fake(self, path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE)
        path.chmod(0o755)

    def does(self, name, text):
        """What a fake program does besides."""
        where = self._bin if (self._bin / name).exists() else pathlib.Path(self.env['VENV']) / 'bin'
        (where / f'{name}.does').write_text(text)

    def ends_with(self, *codes):
        """The exit codes of `slm-jax`, call by call."""
        path = pathlib.Path(self.env['HOME']) / 'codes'
        path.write_text(''.join(f'{code}\n' for code in codes))
        self.does('slm-jax', f'code=$(head -n 1 {path}); sed -i 1d {path}; exit $code')

    def run(self, script, *arguments, **env):
        """The finished process."""
        return subprocess.run(
            ['bash', LAUNCH / script, *arguments],
            cwd=self.cwd,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, *names):
        """[(where, [program, arguments …])] of these programs, so far."""
        text = self._log.read_text() if self._log.exists() else ''
        parts = [line.rstrip('\0').split('\0') for line in text.split('\0\n') if line]
        calls = [(where, [pathlib.Path(program).name, *arguments]) for where, program, *arguments in parts]
        return [call for call in calls if not names or call[1][0] in names]


def commands(output, *names):
    """The commands that --dry_run printed, of these programs."""
    lines = [shlex.split(line) for line in output.splitlines()]
    return [[pathlib.Path(line[0]).name, *line[1:]] for line in lines if pathlib.Path(line[0]).name in names]


def test_linters():
    subprocess.run([BIN / 'shellcheck', *LAUNCH.glob('*.sh'), '.ci/run'], cwd=ROOT, check=True)
    subprocess.run([BIN / 'hadolint', LAUNCH / 'Dockerfile'], check=True)


@pytest.mark.parametrize(
    'line',
    [
        'quickstart.sh out',
        'quickstart.sh --tiny out',
        'test.sh',
        'test.sh -m slow',
        "train.sh runs/mine.gin out --gin.A='it is'",
        'tpu_vm.sh runs/mine.gin gs://b/out',
        'slurm.sh runs/mine.gin out --gin.TRAIN_STEPS=7',
        'tpu_pod.sh create',
        'tpu_pod.sh train mine.gin gs://b/out --gin_file=models/slm_tiny.gin',
        'tpu_pod.sh log',
        'tpu_pod.sh stop',
        'tpu_pod.sh delete',
        'gke.sh build',
        'gke.sh log',
        'gke.sh delete',
    ],
)
def test_a_dry_run_prints_what_runs_and_runs_nothing(place, line):
    (place.cwd / 'mine.gin').write_text('')
    script, *arguments = shlex.split(line)
    before = sorted(place.cwd.parent.rglob('*'))
    dry = place.run(script, *arguments, '--dry_run', SLICES='2')
    assert dry.returncode == 0, dry.stderr
    assert not place.calls() and sorted(place.cwd.parent.rglob('*')) == before
    place.does('gcloud', 'case $* in *describe*) echo ACTIVE ;; esac')
    wet = place.run(script, *arguments, SLICES='2')
    assert wet.returncode == 0, wet.stderr
    names = {call[0] for _, call in place.calls()}
    assert names and [call for _, call in place.calls()] == commands(dry.stdout, *names)


def test_a_dry_run_of_the_first_time_makes_the_environment(place):
    dry = place.run('train.sh', 'mine.gin', 'out', '--dry_run', VENV='new', PYTHON=sys.executable, EXTRAS='[cuda]')
    lines = [shlex.split(line) for line in dry.stdout.splitlines()]
    venv = str(place.cwd / 'new')
    assert [sys.executable, '-m', 'venv', venv] in lines
    (pip,) = (line for line in lines if line[0] == f'{venv}/bin/pip')
    assert pip[-4:] == ['--constraint', f'{ROOT}/constraints.txt', '--editable', f'{ROOT}[cuda]']
    assert lines[-1] == [f'{venv}/bin/slm-jax', 'train', '--gin_file=mine.gin', "--gin.MODEL_DIR='out'"]
    assert not (place.cwd / 'new').exists()


def test_a_quickstart_without_a_source_is_the_tiny_one(place):
    place.does('slm-jax', 'case $* in import\\ qwen*) echo no source >&2; exit 2 ;; esac')
    done = place.run('quickstart.sh', 'out')
    assert done.returncode == 0 and 'They could not be had (see above)' in done.stdout
    calls = [call for _, call in place.calls('slm-jax', 'python')]
    assert calls[:2] == [['slm-jax', 'import', 'whisper_base'], ['slm-jax', 'import', 'qwen2.5_coder_0.5b']]
    assert calls[2:] == commands(place.run('quickstart.sh', 'out', '--tiny', '--dry_run').stdout, 'slm-jax', 'python')
    assert any('--gin_file=runs/slm_tiny_voice_prompts.gin' in call for call in calls)


@pytest.mark.parametrize(('line', 'said'), [('--tinny', '--tinny: give a directory, --tiny'), ('a b', 'one directory')])
def test_a_quickstart_of_something_else(place, line, said):
    done = place.run('quickstart.sh', *line.split())
    assert done.returncode == 2 and said in done.stderr and not place.calls()


def test_the_environment_is_made_once(place):
    for _ in range(2):
        assert place.run('train.sh', 'mine.gin', 'out').returncode == 0
    assert [call[0] for _, call in place.calls()] == ['pip', 'slm-jax', 'slm-jax']
    assert place.run('train.sh', 'mine.gin', 'out', EXTRAS='[cuda]').returncode == 0
    assert len(place.calls('pip')) == 2


@pytest.mark.parametrize('script', ['train.sh', 'tpu_vm.sh'])
def test_paths_are_the_callers_and_arguments_arrive_as_they_are(place, script):
    odd = "--gin.A={'b': \"it's\", 'c': '$HOME * \\\\'}"
    assert place.run(script, 'runs/mine.gin', "it's mine", odd).returncode == 0
    ((where, call),) = place.calls('slm-jax')
    assert where == str(place.cwd)
    assert call == ['slm-jax', 'train', '--gin_file=runs/mine.gin', "--gin.MODEL_DIR='it\\'s mine'", odd]


@pytest.mark.parametrize(
    ('codes', 'times'),
    [
        ((train.EXIT_TERMINATED, 75, 0), 3),  # a signal; another host lost
        ((1,), 1),  # NaN
        ((2,), 1),  # configuration
        ((137,), 1),
        ((143,) * 4, 3),  # MAX_RESTARTS
    ],
)
def test_what_is_started_again(place, codes, times):
    place.ends_with(*codes)
    done = place.run('train.sh', 'mine.gin', 'out', MAX_RESTARTS='2')
    calls = place.calls('slm-jax')
    assert len(calls) == times and done.returncode == codes[times - 1]
    assert all(call == calls[0] for call in calls)
    assert done.stderr.count('starting it again') == times - 1


def test_a_python_that_is_too_old_is_said(place):
    place.fake(pathlib.Path(place.env['HOME']) / 'bin/python3.10')
    place.does('python3.10', 'exit 1')
    done = place.run('train.sh', 'mine.gin', 'out', VENV='new', PYTHON='python3.10')
    assert done.returncode == 2 and 'no Python from 3.11 to 3.13 on the PATH. Install one' in done.stderr


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_training_and_ends_it_for_good(place, number):
    place.does('slm-jax', 'trap "sleep 0.5; echo saved; exit 143" TERM; touch started; while true; do sleep 0.1; done')
    arguments = ['bash', LAUNCH / 'train.sh', 'mine.gin', 'out']
    # Started in the background, a process ignores Ctrl-C, and so would all that it starts.
    command = ['env', '--default-signal=INT', *arguments]
    with subprocess.Popen(command, cwd=place.cwd, env=place.env, stdout=subprocess.PIPE, text=True) as process:
        while not (place.cwd / 'started').exists():
            time.sleep(0.05)
        process.send_signal(number)
        assert 'saved' in process.communicate(timeout=30)[0]
    assert process.returncode == 143 and len(place.calls('slm-jax')) == 1


# Hosts of a pod: `ssh` runs in a folder of the worker, `scp` copies there; a file has the queued resource's states.
HOSTS = """
node=$5 command='' worker=all
case $* in
*queued-resources\\ describe*) head -n 1 "$HOME/states"; sed -i 1d "$HOME/states" ;;
*tpu-vm\\ scp*) for host in "$HOME/${7%:}".{0,1}; do mkdir -p "$host"; cp "$5" "$6" "$host"; done ;;
*tpu-vm\\ ssh*)
  for flag; do case $flag in --command=*) command=${flag#*=} ;; --worker=*) worker=${flag#*=} ;; esac; done
  if [ "$worker" = all ]; then workers='0 1'; else workers=$worker; fi
  for worker in $workers; do (cd "$HOME/$node.$worker" && bash -c "$command") || exit; done
  ;;
esac
"""


@pytest.fixture
def pod(place):
    """Two hosts that are folders."""
    place.does('gcloud', HOSTS)
    (pathlib.Path(place.env['HOME']) / 'states').write_text('ACTIVE\n' * 9)
    (place.cwd / 'runs').mkdir()
    (place.cwd / 'runs/mine.gin').write_text("include 'models/slm_tiny.gin'")
    (place.cwd / 'words.txt').write_text('a\n')
    place.env['SETUP'] = 'echo ready >setup'
    place.does('slm-jax', 'echo "$PWD says $*"; exit $(cat "$HOME/codes")')
    (pathlib.Path(place.env['HOME']) / 'codes').write_text('0')
    for host in ('slm-jax.0', 'slm-jax.1'):  # where the environment lies beside the code
        (pathlib.Path(place.env['HOME']) / host).mkdir()
        (pathlib.Path(place.env['HOME']) / host / 'venv').symlink_to(place.env['VENV'])
    return place


def test_a_pod_is_trained_on_every_host(pod):
    odd = "--gin.A='it\\'s $HOME'"
    done = pod.run('tpu_pod.sh', 'train', 'runs/mine.gin', 'gs://b/out', odd, FILES='words.txt')
    assert done.returncode == 0, done.stderr
    home = pathlib.Path(pod.env['HOME'])
    expected = ['slm-jax', 'train', '--gin_file=runs/mine.gin', "--gin.MODEL_DIR='gs://b/out'", odd, '--multihost']
    calls = dict(pod.calls('slm-jax'))
    assert calls == {f'{home}/slm-jax.{host}/run': expected for host in (0, 1)}
    assert f'{home}/slm-jax.0/run says train' in done.stdout and 'slm-jax.1' not in done.stdout
    for host in (0, 1):
        assert (home / f'slm-jax.{host}/setup').read_text() == 'ready\n'
        assert (home / f'slm-jax.{host}/run/runs/mine.gin').read_text() == "include 'models/slm_tiny.gin'"
        assert (home / f'slm-jax.{host}/run/words.txt').exists()
        assert (home / f'slm-jax.{host}/slm_jax/gin/models/slm_tiny.gin').exists()


@pytest.mark.parametrize('code', ['1', '2'])
def test_what_cannot_work_ends_a_pod_too(pod, code):
    (pathlib.Path(pod.env['HOME']) / 'codes').write_text(code)
    assert pod.run('tpu_pod.sh', 'keep', 'runs/mine.gin', 'gs://b/out').returncode == int(code)
    assert len(pod.calls('slm-jax')) == 2  # once a host
    assert not [call for _, call in pod.calls('gcloud') if 'create' in call]


def test_slices_that_were_taken_away_are_asked_for_again(pod):
    (pathlib.Path(pod.env['HOME']) / 'states').write_text('ACTIVE\nSUSPENDED\nSUSPENDED\nACTIVE\n')
    pod.does('slm-jax', 'if [ -e second ]; then exit 0; fi; touch second; exit 1')
    done = pod.run('tpu_pod.sh', 'keep', 'runs/mine.gin', 'gs://b/out')
    assert done.returncode == 0, done.stderr
    asked = [call[4] for _, call in pod.calls('gcloud') if 'queued-resources' in call and 'describe' not in call]
    assert asked == ['delete', 'create']


def test_stop_saves_on_every_host(pod):
    pod.does('slm-jax', 'trap "echo saved; exit 143" TERM; touch started; while true; do sleep 0.1; done')
    command = ['bash', LAUNCH / 'tpu_pod.sh', 'train', 'runs/mine.gin', 'gs://b/out']
    with subprocess.Popen(command, cwd=pod.cwd, env=pod.env, stdout=subprocess.PIPE, text=True) as process:
        hosts = [pathlib.Path(pod.env['HOME']) / f'slm-jax.{host}/run' for host in (0, 1)]
        while not all((host / 'started').exists() for host in hosts):
            time.sleep(0.05)
        assert pod.run('tpu_pod.sh', 'stop').returncode == 0
        assert 'saved' in process.communicate(timeout=30)[0]
    assert process.returncode == 143 and (hosts[1] / 'exit_code').read_text() == '143\n'


def test_slices_that_will_not_come_are_told(place):
    place.does('gcloud', 'case $* in *describe*) echo FAILED ;; esac')
    done = place.run('tpu_pod.sh', 'create')
    assert done.returncode == 2 and 'slm-jax is FAILED and will not come' in done.stderr


@pytest.mark.parametrize('script', ['tpu_pod.sh', 'gke.sh'])
def test_what_other_machines_cannot_see_is_refused(place, script):
    done = place.run(script, 'train', 'runs/mine.gin', 'out')
    assert done.returncode == 2 and 'MODEL_DIR is out: the hosts are other machines' in done.stderr
    (place.cwd.parent / 'mine.gin').write_text('')
    done = place.run(script, 'train', '../mine.gin', 'gs://b/out')
    assert done.returncode == 2 and '../mine.gin: give it by a path below the working directory' in done.stderr
    done = place.run(script, 'train', 'runs/mine.gin', 'gs://b/out', FILES='words.txt')
    assert done.returncode == 2 and 'FILES: words.txt is not there' in done.stderr
    assert not place.calls()


@pytest.mark.parametrize(('own', 'slices', 'topology', 'hosts'), [(True, 1, '2x2x4', 4), (False, 2, '4x8', 8)])
def test_the_manifest_is_one_that_kubernetes_takes(place, own, slices, topology, hosts):
    (place.cwd / 'runs').mkdir()
    if own:
        (place.cwd / 'runs/mine.gin').write_text("A = 'b'\n\nB = %A\n")
    odd = "--gin.A={'b': \"it's # $HOME\"}"
    arguments = ('train', 'runs/mine.gin', 'gs://b/out', odd)
    env = {'SLICES': str(slices), 'TOPOLOGY': topology, 'SPOT': 'true' if own else ''}
    printed = place.run('gke.sh', *arguments, '--dry_run', **env).stdout
    assert printed.startswith("kubectl apply -f - <<'MANIFEST'\n") and not place.calls()
    place.does('kubectl', 'cat >"$HOME/applied"')
    assert place.run('gke.sh', *arguments, **env).returncode == 0
    applied = (pathlib.Path(place.env['HOME']) / 'applied').read_text()
    assert printed == f"kubectl apply -f - <<'MANIFEST'\n{applied}MANIFEST\n"

    config, jobset = yaml.safe_load_all(applied)
    kubernetes_validate.validate(config, kubernetes_validate.latest_version(), strict=True)
    jsonschema.validate(jobset, json.loads((ROOT / 'tests/testdata/jobset.schema.json').read_text()))
    (slice_,) = jobset['spec']['replicatedJobs']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'slice'}, **slice_['template']}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    assert slice_['replicas'] == slices and job['spec']['parallelism'] == job['spec']['completions'] == hosts
    pod = job['spec']['template']['spec']
    (container,) = pod['containers']
    assert container['args'] == [
        'train', '--gin_file=runs/mine.gin', "--gin.MODEL_DIR='gs://b/out'", odd, '--multihost'
    ]  # fmt: skip
    assert pod['nodeSelector'].get('cloud.google.com/gke-spot') == ('true' if own else None)
    assert config.get('data') == ({'file0': "A = 'b'\n\nB = %A\n"} if own else None)
    assert pod['volumes'][0]['configMap']['items'] == ([{'key': 'file0', 'path': 'runs/mine.gin'}] if own else [])
    # All but NaN and configuration start again.
    (rule,) = job['spec']['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob' and rule['onExitCodes']['values'] == [1, 2]
    assert rule['onExitCodes']['containerName'] == container['name']
    policy = jobset['spec']['failurePolicy']
    assert policy['maxRestarts'] == 100 and policy['rules'][0]['onJobFailureReasons'] == ['PodFailurePolicy']


@pytest.mark.parametrize(('code', 'restarts', 'again'), [(143, 0, 1), (75, 3, 1), (75, 100, 0), (1, 0, 0), (0, 0, 0)])
def test_a_slurm_job_goes_back_into_the_queue(place, code, restarts, again):
    # sbatch runs a copy of the script elsewhere.
    place.does('sbatch', 'cp "${@: -8:1}" "$HOME/copy"; SLURM_JOB_ID=5 bash "$HOME/copy" "${@: -7}"')
    place.does('srun', f'echo "devices $JAX_LOCAL_DEVICE_IDS"; exit {code}')
    done = place.run('slurm.sh', 'runs/mine.gin', 'out', GPUS='4', SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == code and 'devices 0,1,2,3' in done.stdout
    ((where, call),) = place.calls('srun')
    assert where == str(place.cwd)
    assert call[-5:] == [
        f'{place.env["VENV"]}/bin/slm-jax', 'train', '--gin_file=runs/mine.gin', "--gin.MODEL_DIR='out'", '--multihost'
    ]  # fmt: skip
    assert [call for _, call in place.calls('scontrol')] == [['scontrol', 'requeue', '5']] * again


@pytest.mark.slow
def test_a_real_training_is_started_again_in_the_callers_folder(place, manifest):
    """SIGTERM to the training alone, as in a maintenance: it saves, and the script starts it again."""
    for program in ('slm-jax', 'python'):
        (pathlib.Path(place.env['VENV']) / 'bin' / program).unlink()
        (pathlib.Path(place.env['VENV']) / 'bin' / program).symlink_to(BIN / program)
    (place.cwd / 'data').symlink_to(manifest.parent)
    (place.cwd / 'mine.gin').write_text("""
        from __gin__ import dynamic_registration
        from slm_jax import tasks
        include 'runs/train.gin'
        include 'models/slm_tiny.gin'
        tasks.manifest.name = 'mine'
        tasks.manifest.path = {'train': 'data/manifest.jsonl', 'validation': 'data/manifest.jsonl'}
        MIXTURE_OR_TASK_NAME = @tasks.manifest()
        TRAIN_STEPS = 40
        WARMUP_STEPS = 5
        EVAL_PERIOD = 40
        EVAL_BATCHES = 1
        NUM_BUCKETS = 1
        BATCH_SECONDS = 6.0
        LOG_FORMAT = 'json'
        PROFILE_STEPS = (3, 5)
    """)
    environment = place.env | {name: os.environ[name] for name in os.environ if name.startswith(('JAX', 'XLA', 'SLM'))}
    with subprocess.Popen(
        ['bash', LAUNCH / 'train.sh', 'mine.gin', 'out'],
        cwd=place.cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = [process.stdout.readline()]  # Installing …
        while '"step": 10, ' not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], process.stderr.read()
        (child,) = (int(pid) for pid in subprocess.check_output(['pgrep', '-P', str(process.pid)], text=True).split())
        os.kill(child, signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert 'ended with 143: starting it again' in err
    lines = [json.loads(line) for line in [*said[1:], *out.splitlines()]]
    messages = [line.get('message', '') for line in lines]
    assert any('stopped by a signal' in message for message in messages)
    assert any(message.startswith('resumed ') for message in messages)
    assert {line['host'] for line in lines} == {0}
    assert (place.cwd / 'out/profile/plugins/profile/steps_3_5/host0.xplane.pb').exists()
    assert (place.cwd / 'out/checkpoints/40').is_dir()
