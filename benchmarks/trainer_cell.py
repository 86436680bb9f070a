"""The Seq2SeqTrainer + PEFT side of `cell.py`: trains and predicts on the rows and settings in `cell.json`."""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers


def main(workdir: Path) -> None:
    cell = json.loads((workdir / "cell.json").read_text())
    transformers.set_seed(cell["seed"])  # LoRA is initialised before the Trainer sets the seed
    tokenizer = transformers.AutoTokenizer.from_pretrained(cell["model"])
    model = transformers.T5ForConditionalGeneration.from_pretrained(cell["model"])
    model.config.dropout_rate = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type=peft.TaskType.SEQ_2_SEQ_LM, r=cell["rank"], lora_alpha=2 * cell["rank"], target_modules=["q", "v"]
        ),
    )

    def encoded(rows: list[list[str]]) -> list[dict]:
        inputs = tokenizer([row[0] for row in rows], truncation=True, max_length=cell["max_input_length"])
        labels = tokenizer([row[1] for row in rows], truncation=True, max_length=cell["max_target_length"])
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(inputs["input_ids"], inputs["attention_mask"], labels["input_ids"], strict=True)
        ]

    rows = {name: encoded(part) for name, part in cell["rows"].items()}
    trainer = transformers.Seq2SeqTrainer(
        model=model,
        args=transformers.Seq2SeqTrainingArguments(
            output_dir=str(workdir / "trainer"),
            num_train_epochs=cell["epochs"],
            learning_rate=cell["learning_rate"],
            warmup_steps=0.1,  # a value below 1 is a fraction of all steps
            per_device_train_batch_size=cell["batch_size"],
            per_device_eval_batch_size=cell["eval_batch_size"],
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=cell["seed"],
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    trainer.train()
    trainer.args.predict_with_generate = True
    predicted = trainer.predict(rows["test"], max_length=cell["max_target_length"] + 1, num_beams=1).predictions
    predicted[predicted < 0] = tokenizer.pad_token_id
    answers = tokenizer.batch_decode(predicted, skip_special_tokens=True)
    (workdir / "predictions.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
