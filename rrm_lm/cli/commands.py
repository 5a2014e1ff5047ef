"""The commands of `rrm-lm`: the help, the settings and the function of each."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import ConfigError


@dataclass(frozen=True)
class Command:
    """One command. Modules are named from `rrm_lm` on and imported when the command runs, so that `--help` is quick."""

    name: str
    summary: str  # for the list of commands
    work: str  # function that gets the settings, as module:function; what it returns, if anything, is the exit code
    settings: str = ""  # dataclasses, as module:class; without any, the function gets the words after the name
    examples: str = ""
    common: str = ""  # settings that `--help` describes; `--help_all` describes all
    first: str = ""  # the setting that takes the words before the first flag
    usage: str = ""  # what the help calls these words, such as MODEL
    extra: str = ""  # the extra of this package that the command needs

    def read(self, argv: list[str]) -> tuple[Any, ...]:
        """The settings. Raises ConfigError: they are invalid, or a necessary one is missing."""
        from rrm_lm.settings.parsing.parser import parse

        found = parse(
            [_find(one) for one in self.settings.split()],
            argv,
            command=f"rrm-lm {self.name} {self.usage}".rstrip(),
            examples=self.examples,
            common=self.common,
            first=self.first,
        )
        for one in found:
            if hasattr(one, "require"):
                one.require()
        return found

    def run(self, argv: list[str]) -> int:
        """Run the command; returns the exit code. Raises ConfigError: a package of its extra is not installed."""
        given = self.read(argv) if self.settings else [argv]
        try:
            work = _find(self.work)
        except ModuleNotFoundError as error:
            if not self.extra or str(error.name).startswith("rrm_lm"):
                raise
            what = f"This command needs the package {error.name}, which is not installed"
            raise ConfigError(what, where=self.name, remedy=f"pip install 'rrm_lm[{self.extra}]'") from error
        return work(*given) or 0


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"rrm_lm.{module}"), attribute)


_ALL = (
    Command(
        "inspect",
        "show how a file is read and what a model will see of it",
        "runs.data.inspect:inspect_data",
        "settings.feedback:InspectArguments",
        examples="""
            rrm-lm inspect data/assistant/train.jsonl.gz --model smollm2-135m
            rrm-lm inspect my_feedback.csv --columns better=chosen worse=rejected
            rrm-lm inspect org/some-dataset --dataset_train_split train_prefs --json
        """,
        common=(
            "dataset eval_dataset model columns dataset_train_split dataset_test_split dataset_config skip_bad_rows "
            "eval_fraction max_length chat_template_path trust_remote_code rows json"
        ),
        first="dataset",
    ),
    Command(
        "criteria",
        "list what critiques ask for, as criteria that are measured",
        "runs.data.criteria:list_criteria",
        "settings.feedback:CriteriaArguments",
        examples="""
            rrm-lm criteria data/assistant/train.jsonl.gz
            rrm-lm criteria --dataset my_feedback.jsonl --output criteria.yaml
            rrm-lm reward --dataset_name my_feedback.jsonl --criteria criteria.yaml
        """,
        common="dataset output uncovered columns split dataset_config skip_bad_rows json",
        first="dataset",
    ),
    Command("run", "run the whole pipeline: reward model, policy, comparison, report", "cli.pipeline.pipeline:run"),
    Command(
        "reward",
        "train a reward model on comparisons and critiques; evaluate it",
        "runs.reward:train_reward_model",
        (
            "settings.data:DataArguments settings.models:ModelArguments training.reward.config:RewardConfig "
            "settings.training:RewardCommandArguments"
        ),
        examples="""
            rrm-lm reward --config configs/reward.yaml
            rrm-lm reward --dataset_name my_feedback.jsonl --output_dir outputs/mine
            rrm-lm reward --config configs/hh.yaml --learning_rate 1e-4 --max_steps 20
            rrm-lm reward --config configs/reward.yaml --resume_from_checkpoint true
            rrm-lm reward --dataset_name my_feedback.jsonl --learning_curve true
            accelerate launch scripts/train_reward.py --config configs/ultrafeedback.yaml
        """,
        common=(
            "dataset_name eval_dataset_name model_name_or_path output_dir learning_rate num_train_epochs "
            "per_device_train_batch_size max_length critique_weight criteria merge learning_curve"
        ),
    ),
    Command(
        "evaluate",
        "evaluate a reward model on held-out preferences, with error bars",
        "runs.scoring:evaluate",
        "settings.scoring:EvaluateArguments",
        examples="""
            rrm-lm evaluate --model smollm2-135m --dataset data/assistant/heldout.jsonl.gz
            rrm-lm evaluate --model outputs/reward --dataset my_pairs.jsonl others.csv
            rrm-lm evaluate --model Skywork/Skywork-Reward-V2-Qwen3-0.6B \\
                --dataset allenai/reward-bench --split filtered
            rrm-lm evaluate --model smollm2-135m --dataset my_pairs.jsonl \\
                --critic outputs/mine
            rrm-lm evaluate --model outputs/mine outputs/other --dataset my_pairs.csv
            rrm-lm evaluate --model outputs/mine --dataset my_pairs.csv --baselines true
        """,
        common=(
            "model dataset split columns output_dir critic baselines max_length micro_batch_tokens dtype base_model "
            "ensemble chat_template_path"
        ),
    ),
    Command(
        "score",
        "write the reward of each response in a file",
        "runs.scoring:score",
        "settings.scoring:ScoreArguments",
        examples="""
            rrm-lm score --model smollm2-135m --dataset data/assistant/heldout.jsonl.gz
            rrm-lm score --model outputs/reward --dataset responses.jsonl \\
                --output_file rewards.jsonl
            a row of responses.jsonl: {"prompt": "How do I boil an egg?",
                "completion": "Eight minutes in boiling water."}
        """,
        common=(
            "model dataset output_file split columns skip_bad_rows max_length micro_batch_tokens dtype base_model "
            "ensemble chat_template_path trust_remote_code"
        ),
    ),
    Command(
        "serve",
        "serve reward models to other programs over HTTP",
        "serving.run:serve",
        "settings.serving:ServeArguments",
        examples="""
            rrm-lm serve --model outputs/demo/reward              (after `make demo`)
            rrm-lm serve --model outputs/mine outputs/other --port 8080
            curl http://127.0.0.1:8080/v1/rewards -H 'Content-Type: application/json' \\
                -d '{"items": [{"prompt": "Hi", "responses": ["Hello!"]}]}'
        """,
        common=(
            "model host port token_env max_length micro_batch_tokens max_waiting request_timeout drain_timeout dtype"
        ),
        extra="serve",
    ),
    Command(
        "check-server",
        "compare a server's rewards with those of a saved model",
        "serving.checks:check_server",
        "settings.serving:CheckServerArguments",
        examples="""
            rrm-lm check-server http://127.0.0.1:8080 --model outputs/demo/reward \\
                --dialect own                                     (after `make demo`)
            rrm-lm check-server http://127.0.0.1:8000 --model outputs/demo/reward \\
                --dialect vllm --served_name merged
        """,
        common="url dialect model served_name token_env",
        first="url",
        usage="URL",
        extra="serve",
    ),
    Command(
        "push",
        "publish a model on the Hugging Face Hub",
        "runs.push:push",
        "settings.workflows:PushArguments",
        examples="""
            rrm-lm push outputs/demo/reward me/reward --dry_run true (after `make demo`)
            rrm-lm push outputs/mine me/reward                    (log in: hf auth login)
            rrm-lm push outputs/policy/merged me/policy --private false
        """,
        common="words dry_run private commit_message",
        first="words",
        usage="OUTPUT OWNER/NAME",
    ),
    Command(
        "sft",
        "fine-tune on demonstrations, corrections or chosen responses",
        "runs.sft:fine_tune",
        (
            "settings.data:DataArguments settings.models:ModelArguments training.sft.config:SFTConfig "
            "settings.training:SFTRunArguments"
        ),
        examples="""
            rrm-lm sft --config configs/sft.yaml
            rrm-lm sft --dataset_name my_pairs.jsonl --sft_on chosen
            rrm-lm sft --model_name_or_path outputs/mine --dataset_name corrections.jsonl
            rrm-lm sft --config configs/sft.yaml --resume_from_checkpoint true
            accelerate launch scripts/train_sft.py --config configs/sft.yaml
            a row: {"prompt": "How do I boil an egg?", "completion": "Eight minutes."}
        """,
        common=(
            "dataset_name sft_on eval_dataset_name model_name_or_path output_dir learning_rate num_train_epochs "
            "max_steps per_device_train_batch_size max_length lora_r merge"
        ),
    ),
    Command(
        "policy",
        "train a policy against reward models or functions: PPO or RLOO",
        "runs.policy:train_policy",
        (
            "settings.data:PromptArguments settings.training:RewardArguments api.policy.config:StartArguments "
            "api.policy.config:PolicyConfig settings.training:MonitorArguments settings.training:PolicyRunArguments"
        ),
        examples="""
            rrm-lm policy --config configs/policy.yaml     (after sft.yaml, reward.yaml)
            rrm-lm policy --prompts my_prompts.jsonl --reward_model outputs/reward
            rrm-lm policy --prompts my_prompts.jsonl --reward_function rewards.py:polite
            rrm-lm policy --config configs/policy.yaml --resume_from_checkpoint true
            a row of my_prompts.jsonl: {"prompt": "How do I boil an egg?"}
            rewards.py: def polite(prompts, responses):
                           return ["please" in response for response in responses]
        """,
        common=(
            "prompts reward_model reward_function model_name_or_path algorithm gold max_steps "
            "per_device_train_batch_size learning_rate kl_coef response_length output_dir"
        ),
    ),
    Command(
        "chat",
        "chat with a policy or any language model in the terminal",
        "runs.chat:chat",
        "settings.policies:ChatArguments",
        examples="""
            rrm-lm chat smollm2-135m                              (the embedded model)
            rrm-lm chat outputs/sft --temperature 0               (the most likely tokens)
            rrm-lm chat outputs/sft/merged --system "Answer in one sentence." --seed 1
            echo "How long does rice keep?" | rrm-lm chat outputs/sft
        """,
        common=(
            "model system temperature top_p top_k max_new_tokens seed max_length base_model dtype chat_template_path"
        ),
        first="model",
        usage="MODEL",
    ),
    Command(
        "collect",
        "collect comparisons and critiques of a policy's answers",
        "runs.data.collect:collect_feedback",
        "settings.policies:CollectArguments",
        examples="""
            rrm-lm collect smollm2-135m --prompts data/assistant/train.jsonl.gz \\
                --overseer data/assistant/requests.jsonl                (a simulated user)
            rrm-lm collect outputs/policy --prompts my_prompts.jsonl \\
                --overseer my_overseers.py:judge --output_dir outputs/round2
            rrm-lm collect outputs/policy --prompts my_prompts.jsonl \\
                --overseer llm:Qwen/Qwen3-8B --base_url http://127.0.0.1:8000/v1
            rrm-lm reward --dataset_name outputs/round2          (train on the feedback)
        """,
        common=(
            "policy prompts max_prompts overseer base_url samples comparisons_per_prompt critiques max_new_tokens "
            "temperature seed output_dir"
        ),
        first="policy",
        usage="POLICY",
    ),
    Command(
        "ask",
        "serve a page on which people compare, criticize and correct",
        "asking.run:serve",
        "settings.feedback:AskArguments",
        examples="""
            rrm-lm ask --responses scripts/examples/asking/responses.jsonl
            rrm-lm ask --prompts my_prompts.jsonl --model outputs/policy --train true
            rrm-lm ask --responses my_responses.jsonl --people anna ben --overlap 2
            rrm-lm reward --dataset_name feedback.db             (train on the answers)
        """,
        common=(
            "store responses prompts model people overlap ask criteria instructions keys host port train train_every "
            "train_config policy_config"
        ),
        extra="ask",
    ),
    Command(
        "feedback",
        "import, export, merge and retract what a store of feedback holds",
        "runs.data.feedback:manage",
        "settings.feedback:FeedbackArguments",
        examples="""
            rrm-lm feedback import feedback.db data/assistant/train.jsonl.gz
            rrm-lm feedback stats feedback.db
            rrm-lm feedback export feedback.db --output my_feedback
            rrm-lm feedback export feedback.db --output pairs.jsonl --format trl
            rrm-lm feedback merge all.db anna.db ben.db
            rrm-lm feedback retract feedback.db --person ben     (his answers so far)
        """,
        common="words output format person item columns split skip_bad_rows",
        first="words",
        usage="ACTION STORE",
    ),
    Command(
        "compare",
        "compare policies with their starting point on held-out prompts",
        "runs.compare:compare_policies",
        "settings.policies:CompareArguments settings.policies:DrawingArguments",
        examples="""
            rrm-lm compare outputs/demo/policy \\
                --prompts data/notes/validation_questions.jsonl.gz \\
                --gold data/notes/validation_questions.jsonl.gz     (after `make demo`)
            rrm-lm compare outputs/sft outputs/ppo --prompts my_prompts.jsonl \\
                --proxy outputs/reward --reward_model outputs/other
            rrm-lm compare outputs/ppo --prompts my_prompts.jsonl \\
                --judge llm:Qwen/Qwen3-8B --base_url http://127.0.0.1:8000/v1
            a row of my_prompts.jsonl: {"prompt": "How do I boil an egg?"}
        """,
        common=(
            "policies reference prompts max_prompts gold proxy reward_model judge base_url critic samples "
            "max_new_tokens output_dir"
        ),
        first="policies",
        usage="POLICY ...",
    ),
    Command(
        "plan",
        "plan the memory of training on each GPU: what fits, and how",
        "runs.plan:plan_training",
        "settings.plan:PlannedModelArguments settings.plan:PlanArguments",
        examples="""
            rrm-lm plan --num_processes 2 --gpu_memory 24GB --dtype float32
            rrm-lm plan --model_name_or_path Qwen/Qwen3-8B --num_processes 8
            rrm-lm plan --model_name_or_path path/to/config.json --num_processes 16 --json
        """,
        common=(
            "model_name_or_path dtype lora_r num_processes gpu_memory memory_margin prompt_length response_length "
            "critique_length per_device_train_batch_size gradient_accumulation_steps samples_per_prompt "
            "value_function activation_checkpointing json"
        ),
    ),
    Command(
        "recurse",
        "solve a task with helpers trained on easier tasks, recursively",
        "runs.recurse:solve_tree",
        "settings.workflows:RecurseArguments settings.models:ModelArguments",
        examples="""
            rrm-lm recurse --config configs/chip_quick.yaml
            rrm-lm recurse --config configs/chip.yaml --processes 2  (helpers in parallel)
            rrm-lm recurse --config my_tree.yaml --domain my_domain.py:MyDomain
            `tree` in the file maps names of nodes to settings (rrm_lm/recursion/tree.py).
            scripts/examples/recursion/my_domain.py is an example of a domain of your own.
            Run again, it keeps solved nodes and resumes a stopped one.
        """,
        common=(
            "domain tree root node processes output_dir max_length micro_batch_tokens seed model_name_or_path lora_r "
            "dtype"
        ),
    ),
    Command("fetch", "download and convert the embedded default model, once", "cli.fetch:run"),
)
COMMANDS = {command.name: command for command in _ALL}
