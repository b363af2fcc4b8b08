#!/bin/sh
# The whole loop of learning from feedback by the commands one would type: sample, rank, reward, ppo, judge.
#
#     sh examples/rlhf.sh [FOLDER]
#
# Four labelers that do not exist stand in the place of people: they like answers with the word "the" in them, and rank
# one item in ten at random. Their taste stands in taste.py, too, as the outside judge that nothing is trained by. Stages
# that are done are not done again. docs/rlhf.md says what one sees.
set -eu
folder=${1:-rlhf}
model=${MODEL:-smollm2-135m-instruct} # what writes
reader=${READER:-minilm-l6}           # what becomes the reward model
word=${WORD:-the}                     # what they like
steps=${STEPS:-16}
mkdir -p "$folder"
db=$folder/feedback.db

# Prompts: 200, of which every fifth is kept for the judge.
if [ ! -e "$folder/prompts.jsonl" ]; then
    for topic in bread rain tea trains gardens sleep maps music snow bicycles soup letters dogs clocks rivers chess \
        shoes lamps apples bridges books cats coffee walking paint salt kites birds candles swimming trees jam boats \
        winter glass keys wool honey towns moss; do
        for ask in "Give advice about" "Say something about" "What is good about" "Why care about" "Tell me about"; do
            echo "{\"prompt\": \"$ask $topic, in one sentence.\"}"
        done
    done >"$folder/all.jsonl"
    awk 'NR % 5 != int(NR / 5) % 5' "$folder/all.jsonl" >"$folder/prompts.jsonl"
    awk 'NR % 5 == int(NR / 5) % 5' "$folder/all.jsonl" >"$folder/held-out.jsonl"
fi
cat >"$folder/taste.py" <<END
def taste(prompts, answers):
    return [float("$word" in answer.lower().split()) for answer in answers]
END

# 1. Answers to be ranked, four to each prompt.
[ -e "$db" ] || tunesmith feedback sample --database "$db" --models "$model" --data "$folder/prompts.jsonl" \
    --num-answers 4 --max-new-tokens 20

# 2. Rankings. People would come by `tunesmith feedback serve`.
if [ ! -e "$folder/rankings.jsonl" ]; then
    tunesmith feedback simulate --database "$db" --prefer "word=$word" --num-labelers 4 --max-items 40 --noise 0.1
    tunesmith feedback export --database "$db" --form rankings --output "$folder/rankings.jsonl"
fi

# 3. A model of what they like; one of the four is not learned from, and asked only in the end.
[ -e "$folder/reward/manifest.json" ] || tunesmith reward --model "$reader" --method full \
    --data "$folder/rankings.jsonl" --held-out-labelers 1 --num-train-epochs 6 --output "$folder/reward"

# 4. A model that writes what is liked.
[ -e "$folder/ppo/manifest.json" ] || tunesmith align --model "$model" --data "$folder/prompts.jsonl" --algorithm ppo \
    --reward "$folder/reward" --gold-reward "$folder/taste.py:taste" --max-new-tokens 20 --learning-rate 5e-4 \
    --max-steps "$steps" --eval-steps 4 --output "$folder/ppo"

# 5. Both models answer prompts that neither has seen; whose answers say the word more often?
tunesmith judge --model "$folder/ppo" --against "$model" --data "$folder/held-out.jsonl" \
    --reward "$folder/taste.py:taste" --max-new-tokens 20
